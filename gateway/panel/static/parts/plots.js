/** Small plots, each with its figures in words. */
import { html } from "../vendor/preact-htm.js";

// A cause is told by its height too, and not by its colour alone.
const TALLEST = 18;
const HEIGHTS = { manual: TALLEST, quota: 12, capacity: 7 };

/** A bar for each of *values*. */
export function Bars({ title, summary, values, from, to, words, isAlarming }) {
  const most = Math.max(...values, Number.EPSILON);
  return html`<figure class="plot ${isAlarming ? "is-alarming" : ""}">
    <figcaption><span>${title}</span> <strong>${summary}</strong></figcaption>
    <svg viewBox="0 0 ${values.length * 4} 40" preserveAspectRatio="none" role="img" aria-label="${title}: ${summary}">
      <path class="axis" d="M0 39.5H${values.length * 4}" />
      ${values.map((value, n) => value > 0 && html`<rect x=${n * 4 + 0.5} y=${39 - (37 * value) / most} width="3" height=${(37 * value) / most}><title>${words(value)}</title></rect>`)}
    </svg>
    <p class="axis-words" aria-hidden="true"><span>${from}</span><span>${to}</span></p>
  </figure>`;
}

/** Spans of time, a row for each name; *words* says what one is. */
export function Spans({ rows, summary, from, to, words }) {
  return html`<figure class="plot spans">
    <figcaption><strong>${summary}</strong></figcaption>
    ${rows.map(
      ([name, spans]) => html`<div class="span-row">
        <span>${name}</span>
        <svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="${name}: ${spans.map(({ episode }) => words(episode)).join(", ")}">
          <path class="axis" d="M0 19.5H1000" />
          ${spans.map(
            ({ episode, x, width }) => {
              const height = HEIGHTS[episode.cause] ?? TALLEST;
              return html`<rect class="cause-${episode.cause}" x=${1000 * x} y=${19 - height} width=${Math.max(4, 1000 * width)} height=${height}>
                <title>${words(episode)}</title>
              </rect>`;
            },
          )}
        </svg>
      </div>`,
    )}
    <p class="axis-words" aria-hidden="true"><span>${from}</span><span>${to}</span></p>
  </figure>`;
}
