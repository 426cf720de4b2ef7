/**
 * The one event stream of the page: opened again until somebody stops it, with `Last-Event-ID` after a break.
 *
 * A tab that nobody sees gives its stream up, and goes on where it was when it is seen again: a browser has six
 * connections for all its tabs, so five that keep a stream each leave the next tab none for anything else.
 */
import { Problem, request } from "./api.js";
import { EventParser } from "./sse.js";

const SILENCE_MS = 40_000; // the gateway sends a comment far more often
const UNSEEN_MS = 5_000; // a short look at another tab costs nothing
const PAUSES_MS = [500, 1000, 3000, 5000, 8000];

/**
 * Follows `tasks/events` until *signal* is aborted or the key does not allow it.
 *
 * @param {object} told
 * @param {(events: {event: string, data: any}[]) => void} told.onEvents what came at once
 * @param {(retryAtMs: number) => void} told.onAway the gateway is away; it is tried again then
 * @param {(problem: Problem) => void} told.onRefused it will not be tried again
 * @param {AbortSignal} signal
 */
export async function follow({ onEvents, onAway, onRefused }, signal) {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    await isSeen(signal);
    const unseen = whenUnseen();
    let pauseMs = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)];
    try {
      await read(
        lastId,
        (events, id) => {
          failures = 0;
          lastId = id;
          if (events.length) onEvents(events);
        },
        AbortSignal.any([signal, unseen.signal]),
      );
      pauseMs = PAUSES_MS[0];
    } catch (error) {
      if (signal.aborted) return;
      if (unseen.signal.aborted) continue;
      if (error instanceof Problem && error.status === 400) lastId = "";
      else if (error instanceof Problem && (error.status === 401 || error.status === 403)) return onRefused(error);
      else if (error instanceof Problem && error.retryAfterS !== null) pauseMs = error.retryAfterS * 1000;
    } finally {
      unseen.stop();
    }
    failures += 1;
    onAway(Date.now() + pauseMs);
    await pause(pauseMs, signal);
  }
}

async function read(lastId, onRead, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  const either = AbortSignal.any([signal, silence.signal]);
  try {
    const headers = lastId ? { "Last-Event-ID": lastId } : {};
    const answer = await request("tasks/events", { headers, signal: either });
    const parser = new EventParser();
    parser.lastId = lastId;
    const pieces = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await pieces.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const events = parser.read(value).map(({ event, data }) => ({ event, data: JSON.parse(data) }));
      onRead(events, parser.lastId);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Waits until somebody may see the page, or *signal* is aborted. */
function isSeen(signal) {
  return new Promise((resolve) => {
    const look = () => {
      if (document.visibilityState === "hidden" && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}

/** Its *signal* is aborted when nobody has seen the page for a while; *stop* when it does not matter any more. */
function whenUnseen() {
  const controller = new AbortController();
  let timer = null;
  const look = () => {
    clearTimeout(timer);
    if (document.visibilityState === "hidden") timer = setTimeout(() => controller.abort(), UNSEEN_MS);
  };
  const stop = () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return { signal: controller.signal, stop };
}

/** Waits, but not past the moment when the machine is online again or somebody looks at the page. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(over, ms);
    const wake = ["online", "focus"];
    function over() {
      clearTimeout(timer);
      for (const name of wake) removeEventListener(name, over);
      signal.removeEventListener("abort", over);
      resolve();
    }
    for (const name of wake) addEventListener(name, over);
    signal.addEventListener("abort", over);
  });
}
