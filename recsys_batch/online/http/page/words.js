// Codes of the server in words.

export const SOURCES = {
  ranker: "ranked for this request",
  batch: "the night's order",
  popular: "a popular list",
  retrieval: "the request's list, by retrieval score",
  request: "the request's list, in its own order",
};

export const REASONS = {
  unknown_user: "the snapshot does not know this user, so everybody's popular items stand in",
  no_embedding: "the night had no embedding of this user, only a popular list",
  no_ranker: "the model has no ranker",
  deadline: "there was no time left for the ranker",
  ranker_failed: "the ranker failed",
  store_unavailable: "the store of users' lists does not answer, or has lost this one, so popular items stand in",
  stale_snapshot: "the snapshot is old",
  ranker_unavailable: "the model server does not answer",
  model_mismatch: "the model server has another model",
};

// Where a user's lists are from.
export const LISTS = {
  night: { title: "The night's order", note: () => "Computed once, the same for every request", name: "the night's list" },
  live: { title: "The live order", note: (through) => `Refreshed since the night, ${through}`, name: "the live list" },
};

export function throughInWords(time) {
  return time ? `with events through ${new Date(time).toISOString().slice(0, 19).replace("T", " ")} UTC` : "with events of no known time";
}

export function problemInWords(problem) {
  if (problem.status === 401) return "This server asks for a token: type it under Token above.";
  if (problem.status === 503) return `Not now: ${problem.message}.`;
  if (problem.status === 0) return "The server does not answer. Is it running?";
  return `Refused (${problem.status}): ${problem.message}`;
}

export function movement(batchRank, rank, list) {
  if (!batchRank) return { moved: "new", direction: "up", movedInWords: `not in ${list}` };
  const steps = batchRank - rank;
  if (steps === 0) return { moved: "=", movedInWords: `where ${list} has it` };
  const places = `${Math.abs(steps)} ${Math.abs(steps) === 1 ? "place" : "places"}`;
  return steps > 0
    ? { moved: `▲ ${steps}`, direction: "up", movedInWords: `${places} up from ${batchRank}` }
    : { moved: `▼ ${-steps}`, direction: "down", movedInWords: `${places} down from ${batchRank}` };
}
