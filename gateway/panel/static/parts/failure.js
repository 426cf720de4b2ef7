/** Why a task failed, and what to do next. */
import { html } from "../vendor/preact-htm.js";
import { advice } from "../texts.js";
import { Icon } from "./icons.js";

export function Failure({ task }) {
  if (!task.error) return null;
  return html`<div class="failure">
    <${Icon} name="failed" />
    <div>
      <p><code>${task.error.code}</code> ${task.error.message}</p>
      <p>${advice[task.error.code] ?? advice.other}</p>
    </div>
  </div>`;
}
