/** What the page shares: settings, tasks, the list's pages, the connection; and the effects that change them. */
import { Problem, Unreachable, json, newKey, request } from "./api.js";
import { follow } from "./live.js";
import { session } from "./session.js";
import { createStore } from "./store.js";
import { withAnswered, withEvents } from "./tasks.js";

const PAGE = 50;

/**
 * *settings*: null before the first answer. *connection*: "connecting", "live" or "away", then with *retryAtMs*.
 * *lists*: for each filter that was shown, what was read of it. *mayRead*: false where the key lacks the scope.
 */
export const state = createStore({
  settings: null,
  readiness: null,
  tasks: new Map(),
  lists: {},
  connection: { is: "connecting", retryAtMs: 0 },
  mayRead: true,
});

let following = new AbortController();

/** Begins anew, with the key of the session: settings, then the stream and the list. */
export async function begin() {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  state.update({ settings: null, tasks: new Map(), lists: {}, mayRead: true, connection: { is: "connecting", retryAtMs: 0 } });
  follow({ onEvents, onAway, onRefused }, signal);
  await refreshSettings();
}

async function refreshSettings() {
  try {
    state.update({ settings: await json("settings") });
  } catch (error) {
    // without a key the page asks for one; without a gateway the stream comes back, and asks again
    if (!(error instanceof Problem || error instanceof Unreachable)) throw error;
  }
}

/** Asks who would take a request now, by model. A gateway that is not ready says so with a 503, in the same form. */
export async function refreshReadiness() {
  let readiness = null;
  try {
    readiness = (await (await fetch("readyz")).json()).models ?? null;
  } catch {
    // a hint, which the page can do without
  }
  state.update({ readiness });
}

function onEvents(events) {
  let tasks = state.get().tasks;
  let listAgain = false;
  for (const { event, data } of events) {
    if (event === "open") listAgain ||= !data.resumed;
    if (event === "reset") listAgain = true;
  }
  tasks = withEvents(tasks, events);
  const wasAway = state.get().connection.is === "away";
  state.update({ tasks, connection: { is: "live", retryAtMs: 0 } });
  if (wasAway) {
    refreshSettings();
    refreshReadiness();
  }
  if (listAgain) {
    const keys = Object.keys(state.get().lists);
    state.update({ lists: {} });
    for (const key of keys) readList(JSON.parse(key));
  }
}

function onAway(retryAtMs) {
  state.update({ connection: { is: "away", retryAtMs } });
}

function onRefused(problem) {
  if (problem.status === 403) state.update({ mayRead: false, connection: { is: "live", retryAtMs: 0 } });
}

export const listKey = (filter) => JSON.stringify({ status: filter.status, model: filter.model });

/**
 * Reads the next page of the list for *filter*, unless it is being read or was read to its end.
 * @param {{status: string, model: string}} filter
 */
export async function readList(filter) {
  const key = listKey(filter);
  const known = state.get().lists[key] ?? { cursor: null, oldest: undefined, isWhole: false, isReading: false, error: null };
  if (known.isReading || known.isWhole) return;
  setList(key, { ...known, isReading: true, error: null });
  const query = new URLSearchParams({ limit: String(PAGE) });
  for (const name of ["status", "model"]) if (filter[name]) query.set(name, filter[name]);
  if (known.cursor) query.set("cursor", known.cursor);
  try {
    const page = await json(`tasks?${query}`);
    const isWhole = page.next_cursor === null;
    state.update({ tasks: withAnswered(state.get().tasks, page.tasks) });
    setList(key, {
      cursor: page.next_cursor,
      oldest: isWhole ? null : page.tasks.at(-1),
      isWhole,
      isReading: false,
      error: null,
    });
  } catch (error) {
    setList(key, { ...known, isReading: false, error });
  }
}

function setList(key, list) {
  state.update({ lists: { ...state.get().lists, [key]: list } });
}

/** Takes *tasks* of an answer into the page. */
export function learn(tasks) {
  state.update({ tasks: withAnswered(state.get().tasks, tasks) });
}

/** Cancels the task, and takes what it became into the page. */
export async function cancelTask(task) {
  learn([await json(task.links.self, { method: "DELETE" })]);
}

/** Sends the request of *task* again, with its seed or a new one; the new task. */
export async function sendAgain(task, { withNewSeed }) {
  const again = await json(`${task.links.self}/resubmit`, {
    method: "POST",
    body: withNewSeed ? { seed: "new" } : {},
    headers: { "Idempotency-Key": newKey() },
  });
  learn([again]);
  return again;
}

/** Asks for one task, where it is not known. */
export async function fetchTask(id) {
  learn([await json(`tasks/${encodeURIComponent(id)}`)]);
}

/** The content of *path* as an address for an element of this page; free it with `URL.revokeObjectURL`. */
export async function objectUrl(path, signal) {
  const answer = await request(path, { signal });
  return URL.createObjectURL(await answer.blob());
}

/** Where a video element finds *path*: the path itself where no key is needed, so that it is played while it comes. */
export function videoUrl(path, signal) {
  return session.get().key === null ? Promise.resolve(path) : objectUrl(path, signal);
}
