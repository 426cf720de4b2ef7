/** For operators: the routing decision of a task, and why the shared worker started it when it did. */
import { html, useEffect, useState } from "../vendor/preact-htm.js";
import { json } from "../core/api.js";
import { seconds } from "../core/format.js";
import { Trouble, useAction } from "../parts/basics.js";
import { operate, task as taskTexts } from "../texts.js";

const texts = operate.explain;

export function Explain({ task }) {
  const [found, setFound] = useState(null);
  const asking = useAction(async () => setFound(await json(`admin/tasks/${task.id}/explain`)));
  useEffect(() => {
    asking.run();
  }, [task.id, task.status]);
  return html`<section>
    <h2>${taskTexts.sections.explain}</h2>
    <${Trouble} error=${asking.error} onAgain=${asking.run} />
    ${found && html`<${Found} found=${found} />`}
  </section>`;
}

function Found({ found }) {
  return html`<dl class="pairs">
    ${found.fired === null
      ? html`<div><dt>${texts.then}</dt><dd>${texts.none}</dd></div>`
      : html`<div>
          <dt>${texts.then}</dt>
          <dd>${texts.rule(found.fired.rule, found.fired.reason)} ${found.agrees ? texts.agrees : texts.differs}</dd>
        </div>`}
    <div><dt>${texts.now}</dt><dd>${texts.rule(found.now.rule, found.now.reason)}</dd></div>
    ${found.chosen && html`<div><dt>${texts.order}</dt><dd>${found.chosen}</dd></div>`}
    ${found.order &&
    html`<div>
      <dt>${texts.waiting}</dt>
      <dd><ul>${found.order.waiting.map((group) => html`<li>${texts.waited(group.count, group.model, group.priority, seconds(group.oldest_s))}</li>`)}</ul></dd>
    </div>`}
  </dl>`;
}
