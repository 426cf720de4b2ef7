/** The request of the form, to take to a terminal or a program. */
import { html, useState } from "../vendor/preact-htm.js";
import { SNIPPETS } from "../core/snippets.js";
import { CopyBox } from "../parts/basics.js";
import { make as texts } from "../texts.js";

/** *make* gives what a snippet is made of, for the address of the gateway. */
export function CopyAs({ make }) {
  const [kind, setKind] = useState("");
  const request = kind && make(document.baseURI.replace(/#.*$/, ""));
  return html`<div class="copyas">
    <div class="buttons" role="group" aria-label=${texts.copyAs}>
      <span class="hint">${texts.copyAs}</span>
      ${Object.keys(SNIPPETS).map(
        (name) =>
          html`<button type="button" class="chip" aria-pressed=${name === kind ? "true" : "false"} onClick=${() => setKind(name === kind ? "" : name)}>
            ${name}
          </button>`,
      )}
    </div>
    ${request &&
    html`<p class="hint">${texts.copyAsHelp} ${request.hasKey && texts.keyVariable}</p>
      <${CopyBox} text=${SNIPPETS[kind](request)} label=${kind} />`}
  </div>`;
}
