/** Operate, for the scope admin: what the system does, and the few things that an operator may change in it. */
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { Problem, Unreachable, json, serverNow } from "../core/api.js";
import { time } from "../core/format.js";
import { state } from "../core/state.js";
import { useStore } from "../core/store.js";
import { Trouble } from "../parts/basics.js";
import { Lacks } from "../parts/lacks.js";
import { operate as texts } from "../texts.js";
import { Keys } from "./keys.js";
import { Lanes, Slots } from "./lanes.js";
import { ColdStarts, Fallbacks, History, Swaps } from "./past.js";
import { SharedQueue } from "./queue.js";
import { showFailed } from "./watch.js";

const AGAIN_MS = 3000;
const PARTS = ["lanes", "queue", "history", "fallbacks", "swaps", "cold_starts", "keys"];

/** What the gateway answers for operators, read again while somebody looks: `{lanes, queue, …}`, and what could not be read. */
function useAdmin(isOn) {
  const [known, setKnown] = useState({ read: {}, errors: {}, atMs: 0 });
  const again = useRef(() => {});
  useEffect(() => {
    if (!isOn) return undefined;
    let isOver = false;
    let timer;
    const look = async () => {
      clearTimeout(timer);
      if (document.visibilityState === "visible") {
        const answers = await Promise.allSettled(PARTS.map((part) => json(`admin/${part}`)));
        if (isOver) return;
        setKnown(({ read }) => withAnswers(read, answers));
      }
      timer = setTimeout(look, AGAIN_MS);
    };
    again.current = look;
    document.addEventListener("visibilitychange", look);
    look();
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
    };
  }, [isOn]);
  return { ...known, again: () => again.current() };
}

function withAnswers(read, answers) {
  const now = { ...read };
  const errors = {};
  for (const [n, part] of PARTS.entries()) {
    const { status, value, reason } = answers[n];
    if (status === "fulfilled") now[part] = value;
    else if (reason instanceof Problem) errors[part] = reason;
    else if (!(reason instanceof Unreachable)) throw reason; // that the gateway is away stands above the view
  }
  return { read: now, errors, atMs: serverNow() };
}

export function Operate() {
  const settings = useStore(state, (now) => now.settings);
  const mayLook = settings?.caller.scopes.includes("admin") ?? false;
  const { read, errors, atMs, again } = useAdmin(mayLook);
  if (!mayLook) return html`<${Lacks} scope="admin" />`;
  const part = (name, Part, props = {}) =>
    html`<${Trouble} error=${errors[name]} />${read[name] && html`<${Part} of=${read[name]} again=${again} settings=${settings} ...${props} />`}`;
  return html`<div class="operate">
    <header class="list-head">
      <h1 tabindex="-1">${texts.title}</h1>
      ${atMs > 0 && html`<p class="hint">${texts.refreshed(time(atMs, atMs))}</p>`}
    </header>
    <div class="board">
      ${part("lanes", Lanes)}
      <div class="columns">
        <div>${part("queue", SharedQueue)} ${part("swaps", Swaps)} ${part("cold_starts", ColdStarts)}</div>
        <div>
          ${read.lanes && html`<${Slots} of=${read.lanes} again=${again} />`} ${part("history", History)}
          <section class="card">
            <h2>${texts.failed.title}</h2>
            <p class="hint">${texts.failed.hint}</p>
            <button type="button" class="quiet" onClick=${showFailed}>${texts.failed.go}</button>
          </section>
        </div>
      </div>
      ${part("fallbacks", Fallbacks)} ${part("keys", Keys)}
    </div>
  </div>`;
}
