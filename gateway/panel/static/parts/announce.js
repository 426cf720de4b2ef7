/** What screen readers hear without anybody moving to it. */
import { html } from "../vendor/preact-htm.js";
import { createStore, useStore } from "../core/store.js";

const QUIET_MS = 4000;
const spoken = createStore({ text: "" });
let lastMs = 0;
let waiting;

/** Says *text* politely. Of what comes in quick succession only the newest is said. */
export function announce(text) {
  clearTimeout(waiting);
  const say = () => {
    lastMs = Date.now();
    spoken.update({ text });
  };
  waiting = setTimeout(say, Math.max(0, lastMs + QUIET_MS - Date.now()));
}

export function Announcer() {
  return html`<div class="unseen" aria-live="polite" role="status">${useStore(spoken, (now) => now.text)}</div>`;
}
