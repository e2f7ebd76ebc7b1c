// What is looked at, as the address behind the # says it, so that it can be sent to somebody. The token is never in it.

export function emptyContext() {
  return { weekday: "", hour: "12", device: "", category: "", explain: false, session: [], excluded: [] };
}

export function readHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const weekday = given.get("day") ?? "";
  const hour = given.get("hour") ?? "";
  return {
    user: given.get("user") ?? "",
    weekday: /^[0-6]$/.test(weekday) ? weekday : "",
    hour: /^\d{1,2}$/.test(hour) && Number(hour) < 24 ? String(Number(hour)) : "12",
    device: given.get("device") ?? "",
    category: given.get("category") ?? "",
    explain: given.get("explain") === "1",
    session: given.getAll("session"),
    excluded: given.getAll("exclude"),
  };
}

export function writeHash(state) {
  const told = new URLSearchParams();
  if (state.user) told.set("user", state.user);
  if (state.weekday) told.set("day", state.weekday);
  if (state.weekday) told.set("hour", state.hour);
  if (state.device) told.set("device", state.device);
  if (state.category) told.set("category", state.category);
  if (state.explain) told.set("explain", "1");
  for (const id of state.session) told.append("session", id);
  for (const id of state.excluded) told.append("exclude", id);
  return `#${told}`;
}

// 1 January 2024 was a Monday; the ranker looks at the hour and the day of the week, UTC.
export function rankBody(state, k) {
  const context = {};
  if (state.weekday) context.timestamp = `2024-01-0${1 + Number(state.weekday)}T${state.hour.padStart(2, "0")}:00:00Z`;
  if (state.device) context.device = state.device;
  if (state.session.length) context.session_item_ids = state.session;
  const body = { user_id: state.user, k, context, explain: state.explain };
  if (state.excluded.length) body.exclude_item_ids = state.excluded;
  if (state.category) body.filters = { categories: [state.category] };
  return body;
}
