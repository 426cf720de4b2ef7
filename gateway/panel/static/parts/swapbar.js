/** The parts of a swap's time as one bar, each with its name and its figure. */
import { html } from "../vendor/preact-htm.js";
import { seconds } from "../core/format.js";
import { swapParts } from "../core/receipt.js";

/** @param {{swap: object, longestS?: number}} props *longestS*: the time that the whole width stands for */
export function SwapBar({ swap, longestS }) {
  const parts = swapParts(swap);
  const total = longestS ?? parts.reduce((sum, part) => sum + part.s, 0);
  let from = 0;
  return html`<div class="swapbar">
    <svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
      ${parts.map((part, n) => {
        const x = from;
        from += (100 * part.s) / total;
        return html`<rect class="part-${n % 6}" x=${x} width=${(100 * part.s) / total} height="4" />`;
      })}
    </svg>
    <ul class="legend">${parts.map((part, n) => html`<li><span class="swatch part-${n % 6}" aria-hidden="true"></span>${part.name} ${seconds(part.s)}</li>`)}</ul>
  </div>`;
}
