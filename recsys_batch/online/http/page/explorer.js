// The page's state, its controls, and what happens when they change.

import { Newest, Problem, ask } from "./api.js";
import { chips, element, show } from "./lists.js";
import { emptyContext, rankBody, readHash, writeHash } from "./state.js";
import { LISTS, REASONS, SOURCES, movement, problemInWords, throughInWords } from "./words.js";

const SHOWN = 20;
const WAIT_MS = 120;
const WATCH_MS = 3000;
const at = (id) => document.getElementById(id);
const lists = { history: at("history"), candidates: at("candidates"), batch: at("batch"), online: at("online") };
const controls = ["weekday", "hour", "device", "category"];

let state = { user: "", ...emptyContext() };
let about = null; // of state.user; null for nobody or somebody unknown
let choices = { user_ids: [], max_k: SHOWN };
let timer = 0;
const titles = new Map();
const newest = { user: new Newest(), rank: new Newest(), watch: new Newest() };

const token = () => sessionStorage.getItem("token") ?? "";
const title = (id) => titles.get(String(id)) ?? `item ${id}`;

function remember(items) {
  for (const item of items ?? []) if (item.title) titles.set(String(item.item_id), item.title);
}

// A link names items of a session that are in none of the lists.
function nameStrangers() {
  const unnamed = [...state.session, ...state.excluded].filter((id) => !titles.has(id));
  for (const id of unnamed) {
    titles.set(id, `item ${id}`);
    ask(`v1/item?item_id=${encodeURIComponent(id)}`, { token: token() }).then(
      (item) => (remember([item]), showChips()),
      () => {},
    );
  }
}

function tell(text) {
  at("message").textContent = text;
}

// What was shown for another user, or another request, goes before anything new is asked.
function clear() {
  for (const list of Object.values(lists)) list.replaceChildren();
  forgetAnswer();
  at("history-note").textContent = "Newest first";
  at("candidates-title").textContent = "Candidates";
}

function forgetAnswer() {
  lists.online.replaceChildren();
  for (const id of ["source", "lists", "degraded", "timing"]) at(id).hidden = true;
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    forgetAnswer();
    if (error.status === 401) at("access").open = true;
    tell(error instanceof Problem ? problemInWords(error) : `The page failed: ${error.message}`);
    if (!(error instanceof Problem)) throw error;
  }
}

async function loadChoices() {
  at("snapshot").textContent = "";
  choices = await ask("v1/users?limit=50", { token: token() });
  const count = (n, what) => `${n.toLocaleString("en")} ${what}`;
  at("snapshot").textContent =
    `Snapshot ${choices.snapshot_id} · model ${choices.model_version} · night of ${choices.run_date} · ` +
    `${count(choices.n_users, "users")}, ${count(choices.n_items, "items")}`;
  at("users").replaceChildren(...choices.user_ids.map((id) => element("option", { value: String(id) })));
  options(at("device"), [...choices.devices, "other"], state.device);
  options(at("category"), choices.categories, state.category);
}

function options(select, names, chosen) {
  const all = chosen && !names.includes(chosen) ? [...names, chosen] : names;
  select.replaceChildren(select.options[0], ...all.map((name) => element("option", { value: name, textContent: name })));
  select.value = chosen;
}

async function loadUser() {
  clear();
  about = null;
  const signal = newest.user.signal();
  newest.rank.signal();
  newest.watch.signal();
  if (!state.user) return tell("Choose a user.");
  tell(`Reading user ${state.user} …`);
  try {
    about = await askUser(signal);
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  await showAll();
}

const askUser = (signal) => ask(`v1/user?user_id=${encodeURIComponent(state.user)}`, { token: token(), signal });

async function showAll() {
  remember(about?.history);
  remember(about?.candidates);
  showUser();
  await loadRanking();
}

// Where the stream refreshes lists, a new one is shown while somebody looks; what goes wrong is told when a person asks.
async function watch() {
  if (!choices.live || !state.user || document.hidden) return;
  const told = await askUser(newest.watch.signal()).catch(() => null);
  if (!told || String(told.user_id) !== state.user || JSON.stringify(told) === JSON.stringify(about)) return;
  about = told;
  await showAll();
}

async function loadRanking() {
  const signal = newest.rank.signal();
  if (!state.user) return;
  const body = rankBody(state, Math.min(SHOWN, choices.max_k));
  const answer = await ask("v1/rank", { token: token(), body, signal });
  remember(answer.items);
  showAnswer(answer);
  nameStrangers();
}

function showUser() {
  const detail = (item) => item.categories.join(", ");
  const row = (item, rank, more) => ({ id: item.item_id, title: title(item.item_id), rank, detail: detail(item), ...more });
  const handlers = { onPick: pick };
  const history = about?.history ?? [];
  show(lists.history, history.map((item) => row(item, 0)), {
    ...handlers,
    empty: about?.history === null ? "The snapshot keeps this for some users only, and this is none of them." : "Nothing is known.",
  });
  at("history-note").textContent = about ? `Newest first; ${about.n_events} items in all` : "Newest first";
  const candidates = about?.candidates ?? [];
  at("candidates-title").textContent = `Candidates (${candidates.length})`;
  const score = (item) => ({ detail: [item.score.toFixed(3), detail(item)].filter(Boolean).join(" · ") });
  show(lists.candidates, candidates.map((item, n) => row(item, n + 1, score(item))), { ...handlers, empty: "No candidates." });
  const batch = candidates.filter((item) => item.batch_rank).sort((a, b) => a.batch_rank - b.batch_rank).slice(0, SHOWN);
  const from = LISTS[about?.lists ?? "night"];
  at("batch-title").textContent = from.title;
  at("batch-note").textContent = from.note(throughInWords(about?.events_through));
  at("online-note").textContent = `Moves are counted against ${from.name}`;
  show(lists.batch, batch.map((item) => row(item, item.batch_rank)), { ...handlers, empty: "The night has no list of this user." });
  showChips();
}

function showAnswer(answer) {
  const known = new Map((about?.candidates ?? []).map((item) => [String(item.item_id), item]));
  const values = answer.items.flatMap((item) => Object.values(item.contributions ?? {}));
  const scale = Math.max(0, ...values.map(Math.abs));
  const rows = answer.items.map((item) => {
    const own = known.get(String(item.item_id));
    const from = item.candidate_rank ? `candidate ${item.candidate_rank}` : "";
    const detail = [own?.categories.join(", "), from].filter(Boolean).join(" · ");
    const moved = about ? movement(own?.batch_rank, item.rank, LISTS[about.lists].name) : {};
    return { id: item.item_id, title: title(item.item_id), rank: item.rank, detail, contributions: item.contributions, scale, ...moved };
  });
  show(lists.online, rows, { empty: "Nothing is left: take something out of the filters.", onPick: pick, onDrop: exclude });
  badge("source", SOURCES[answer.source] ?? answer.source);
  badge("lists", answer.lists === "live" && `Live list, ${throughInWords(answer.events_through)}`);
  badge("degraded", answer.degraded && `Degraded: ${REASONS[answer.degraded] ?? answer.degraded}`);
  at("degraded").dataset.reason = answer.degraded ?? "";
  tell(`User ${answer.user_id}: ${answer.items.length} items, snapshot ${answer.snapshot_id}, model ${answer.model_version}`);
  showTimings(answer.timings_ms);
  showChips();
}

function badge(id, text) {
  at(id).hidden = !text;
  at(id).textContent = text ?? "";
}

function showTimings({ total, ...stages }) {
  const named = Object.entries(stages);
  at("timing").hidden = false;
  at("total").textContent = `${total.toFixed(2)} ms`;
  at("stages").setAttribute("aria-label", named.map(([name, ms]) => `${name} ${ms.toFixed(2)} milliseconds`).join(", "));
  const bars = named.map(([name, ms]) => {
    const bar = element("i", { className: name });
    bar.style.flexGrow = String(1000 * ms); // below 1 in all, flex would leave a part empty
    return bar;
  });
  at("stages").replaceChildren(...bars);
  const names = named.map(([name, ms]) => element("li", {}, element("i", { className: name }), `${name} ${ms.toFixed(2)}`));
  at("stage-names").replaceChildren(...names);
}

function showChips() {
  at("session-none").hidden = state.session.length > 0;
  at("excluded-part").hidden = state.excluded.length === 0;
  chips(at("session"), state.session, title, "Remove from the session:", (id) => without("session", id));
  chips(at("excluded"), state.excluded, title, "Let back in:", (id) => without("excluded", id));
}

function pick(id) {
  change({ session: [...state.session.filter((one) => one !== id), id] });
}

function exclude(id) {
  change({ excluded: [...state.excluded.filter((one) => one !== id), id] });
}

function without(name, id) {
  change({ [name]: state[name].filter((one) => one !== id) });
}

// The context changed: the address says so at once, the server is asked when the hand has come to rest.
function change(parts) {
  state = { ...state, ...parts };
  history.replaceState(null, "", writeHash(state));
  showControls();
  showChips();
  clearTimeout(timer);
  timer = setTimeout(() => guarded(loadRanking), WAIT_MS);
}

function showControls() {
  for (const name of controls) at(name).value = state[name];
  at("explain").checked = state.explain;
  at("hour").disabled = !state.weekday;
  at("hour-told").textContent = state.weekday ? `${state.hour.padStart(2, "0")}:00` : "";
}

function goTo(user) {
  if (user === state.user && about) return;
  clearTimeout(timer);
  state = { ...state, user, session: [], excluded: [] };
  at("user").value = user;
  history.pushState(null, "", writeHash(state));
  showChips();
  guarded(loadUser);
}

function fromAddress() {
  clearTimeout(timer);
  state = readHash(location.hash);
  at("user").value = state.user;
  options(at("device"), choices.devices ? [...choices.devices, "other"] : [], state.device);
  options(at("category"), choices.categories ?? [], state.category);
  showControls();
  showChips();
}

function start() {
  at("token").value = token();
  at("who").addEventListener("submit", (event) => {
    event.preventDefault();
    goTo(at("user").value.trim());
  });
  at("another").addEventListener("click", () => {
    const others = choices.user_ids.map(String).filter((id) => id !== state.user);
    if (others.length) goTo(others[Math.floor(Math.random() * others.length)]);
  });
  at("context").addEventListener("submit", (event) => event.preventDefault());
  for (const name of controls) at(name).addEventListener("input", () => change({ [name]: at(name).value }));
  at("explain").addEventListener("input", () => change({ explain: at("explain").checked }));
  at("neutral").addEventListener("click", () => change(emptyContext()));
  at("token").addEventListener("change", () => {
    sessionStorage.setItem("token", at("token").value);
    guarded(open);
  });
  addEventListener("popstate", () => {
    fromAddress();
    guarded(loadUser);
  });
  fromAddress();
  guarded(open);
  setInterval(() => guarded(watch), WATCH_MS);
}

async function open() {
  await loadChoices();
  if (!state.user && choices.user_ids.length) {
    state.user = String(choices.user_ids[0]);
    at("user").value = state.user;
    history.replaceState(null, "", writeHash(state));
  }
  showControls();
  await loadUser();
}

start();
