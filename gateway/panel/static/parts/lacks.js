/** A view that the key does not open. */
import { html } from "../vendor/preact-htm.js";
import { key as texts } from "../texts.js";
import { Icon } from "./icons.js";

export function Lacks({ scope }) {
  return html`<section class="card empty">
    <${Icon} name="lock" />
    <p>${texts.lacks(scope)}</p>
  </section>`;
}
