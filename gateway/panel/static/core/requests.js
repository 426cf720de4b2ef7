/**
 * What was sent from this page, and what became of it.
 *
 * Every request goes out with `Prefer: respond-async`: it is accepted or refused at once, its place in the queue is
 * known from then on, and a reload of the page loses nothing (ADR 0045). Its Idempotency-Key makes it safe to send
 * again after a connection broke.
 */
import { Problem, Unreachable, json, newKey } from "./api.js";
import { learn, state } from "./state.js";
import { createStore } from "./store.js";

/**
 * *is*: "sending"; "unsent", the gateway was away; "refused", with *problem* and *mayGoAtMs*, and sent again then if
 * *goesByItself*; "accepted", with *taskId*. Newest first.
 */
export const requests = createStore({ sent: [] });

let timer;

const nameOf = () => Date.now() + Math.random();

/**
 * Sends *body*. Resolves when the gateway took it or must be waited for.
 * @throws {Problem} where the request itself has to be changed
 */
export async function submit(body) {
  const entry = { name: nameOf(), body, key: newKey(), is: "sending", problem: null, mayGoAtMs: 0, goesByItself: false, taskId: null };
  requests.update(({ sent }) => ({ sent: [entry, ...sent] }));
  try {
    await send(entry);
  } catch (error) {
    dropRequest(entry); // it stays in the form
    throw error;
  }
}

/** Sends *entry* again after it was refused for now, under a key of its own. */
export async function sendAnew(entry) {
  change(entry, { is: "sending", problem: null });
  try {
    await send(entry);
  } catch (error) {
    change(entry, { is: "refused", problem: error, mayGoAtMs: 0, goesByItself: false });
  }
}

export function dropRequest(entry) {
  requests.update(({ sent }) => ({ sent: sent.filter((each) => each.name !== entry.name) }));
}

/** Whether *entry* is sent again by itself when it may. */
export function setGoesByItself(entry, goesByItself) {
  change(entry, { goesByItself });
  watchTheClock();
}

/** A task that was made from another one, shown among what was sent. */
export function follow(task) {
  const entry = { name: nameOf(), body: null, key: "", is: "accepted", problem: null, mayGoAtMs: 0, goesByItself: false, taskId: task.id };
  requests.update(({ sent }) => ({ sent: [entry, ...sent] }));
}

async function send(entry) {
  const headers = { Prefer: "respond-async", "Idempotency-Key": entry.key };
  try {
    const task = await json("generate", { method: "POST", body: entry.body, headers });
    learn([task]);
    change(entry, { is: "accepted", taskId: task.id, body: null });
  } catch (error) {
    if (error instanceof Unreachable) {
      change(entry, { is: "unsent" });
    } else if (error instanceof Problem && error.retryAfterS !== null) {
      change(entry, { is: "refused", problem: error, mayGoAtMs: Date.now() + error.retryAfterS * 1000 });
      watchTheClock();
    } else {
      throw error;
    }
  }
}

function change(entry, changes) {
  requests.update(({ sent }) => ({ sent: sent.map((each) => (each.name === entry.name ? { ...each, ...changes } : each)) }));
}

function watchTheClock() {
  clearTimeout(timer);
  const due = requests.get().sent.filter((each) => each.is === "refused" && each.goesByItself);
  if (due.length === 0) return;
  const firstMs = Math.min(...due.map((each) => each.mayGoAtMs));
  timer = setTimeout(() => {
    for (const each of due) if (each.mayGoAtMs <= Date.now()) sendAnew(each);
    watchTheClock();
  }, Math.max(0, firstMs - Date.now()));
}

let wasAway = false;
state.subscribe(() => {
  const isAway = state.get().connection.is === "away";
  if (wasAway && !isAway) for (const entry of requests.get().sent) if (entry.is === "unsent") sendAnew(entry);
  wasAway = isAway;
});
