/** A table that scrolls by itself where the page is narrow. */
import { html } from "../vendor/preact-htm.js";

/** @param {{caption: string, head: string[], rows: any[][]}} props the first cell of a row names it */
export function Table({ caption, head, rows }) {
  return html`<div class="table" role="group" aria-label=${caption} tabindex="0">
    <table>
      <caption>${caption}</caption>
      <thead><tr>${head.map((text) => html`<th scope="col">${text}</th>`)}</tr></thead>
      <tbody>${rows.map(([first, ...cells]) => html`<tr><th scope="row">${first}</th>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
    </table>
  </div>`;
}
