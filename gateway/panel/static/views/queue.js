/** The shared queue, place by place, and who serves it. */
import { html } from "../vendor/preact-htm.js";
import { seconds } from "../core/format.js";
import { Table } from "../parts/table.js";
import { operate, task as taskTexts } from "../texts.js";

const texts = operate.queue;

export function SharedQueue({ of }) {
  const shared = of.queues.find((queue) => queue.route === "degraded");
  const lanes = of.queues.filter((queue) => queue.route === "lane" && queue.messages > 0);
  return html`<section class="card" aria-labelledby="queue-title">
    <h2 id="queue-title">${texts.title}</h2>
    <p>${texts.taken(shared.messages, shared.max_msgs)}. ${of.leader ? texts.leader(of.leader.worker, of.leader.slot) : texts.nobody}.</p>
    <${Places} queue=${shared} />
    ${shared.running.map(
      (task) => html`<p class="hint">
        <a href="#/watch/${task.id}">${texts.running(task.model, task.step === null ? "" : `, ${taskTexts.step(task.step, task.steps).toLowerCase()}`, task.left_s === null ? "" : `, ${taskTexts.left(seconds(task.left_s))}`)}</a>
      </p>`,
    )}
    ${shared.waiting.length > 0 &&
    html`<${Table}
      caption=${texts.taken(shared.messages, shared.max_msgs)}
      head=${["#", operate.lanes.model, taskTexts.facts.priority, texts.caller, texts.age, texts.left, texts.start]}
      rows=${shared.waiting.map((task) => [
        html`<a href="#/watch/${task.id}">${task.position}</a>`,
        task.model,
        task.priority,
        task.caller,
        seconds(task.age_s),
        seconds(task.left_s),
        task.expected_wait_s === null ? "" : seconds(task.expected_wait_s),
      ])}
    />`}
    ${lanes.map((queue) => html`<p class="hint">${texts.lane(queue.estimates[0]?.model ?? queue.stream, queue.messages)}</p>`)}
  </section>`;
}

/** Every place of the queue as a square: free, or filled by how much of its wait is over. */
function Places({ queue }) {
  const places = Array.from({ length: queue.max_msgs }, (_, n) => queue.waiting[n] ?? null);
  return html`<ol class="places">
    ${places.map((task, n) => {
      const words = task ? texts.place(n + 1, task.model, task.priority, seconds(task.age_s)) : texts.free(n + 1);
      const share = task ? Math.min(1, task.age_s / queue.wait_limit_s) : 0;
      return html`<li class=${task ? "is-taken" : ""} title=${words}>
        <span class="unseen">${words}</span>
        <svg viewBox="0 0 10 10" preserveAspectRatio="none" aria-hidden="true"><rect y=${10 - 10 * share} width="10" height=${10 * share} /></svg>
      </li>`;
    })}
  </ol>`;
}
