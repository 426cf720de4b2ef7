/** The one event stream of the page: opened again until somebody stops it, with `Last-Event-ID` after a break. */
import { Problem, request } from "./api.js";
import { EventParser } from "./sse.js";

const SILENCE_MS = 40_000; // the gateway sends a comment far more often
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
    let pauseMs = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)];
    try {
      await read(
        lastId,
        (events, id) => {
          failures = 0;
          lastId = id;
          if (events.length) onEvents(events);
        },
        signal,
      );
      pauseMs = PAUSES_MS[0];
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 400) lastId = "";
      else if (error instanceof Problem && (error.status === 401 || error.status === 403)) return onRefused(error);
      else if (error instanceof Problem && error.retryAfterS !== null) pauseMs = error.retryAfterS * 1000;
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
