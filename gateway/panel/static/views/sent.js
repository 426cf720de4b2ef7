/** What was sent from this page: accepted, refused for now, or waiting for the gateway to come back. */
import { html, useEffect } from "../vendor/preact-htm.js";
import { seconds } from "../core/format.js";
import { dropRequest, requests, sendAnew, setGoesByItself } from "../core/requests.js";
import { state } from "../core/state.js";
import { useStore } from "../core/store.js";
import { announce } from "../parts/announce.js";
import { Actions, Player } from "../parts/actions.js";
import { Badge, useNow } from "../parts/basics.js";
import { Failure } from "../parts/failure.js";
import { Progress, TaskBadge, useSpoken } from "../parts/progress.js";
import { make as makeTexts, sent as texts, task as taskTexts } from "../texts.js";

export function Sent() {
  const sent = useStore(requests, (now) => now.sent);
  return html`<section class="sent" aria-labelledby="sent-title">
    <h2 id="sent-title">${texts.title}</h2>
    ${sent.length === 0 && html`<p class="card empty">${texts.empty}</p>`}
    ${sent.map((entry) =>
      entry.is === "accepted"
        ? html`<${Accepted} key=${entry.name} id=${entry.taskId} />`
        : html`<${NotAccepted} key=${entry.name} entry=${entry} />`,
    )}
  </section>`;
}

function Accepted({ id }) {
  const task = useStore(state, (now) => now.tasks.get(id));
  useSpoken(task);
  if (!task) return null; // its record is gone
  return html`<article class="card task-live" aria-label=${task.parameters.prompt}>
    <header>
      <${TaskBadge} task=${task} />
      <a href="#/watch/${task.id}">${taskTexts.details}</a>
    </header>
    <p class="prompt">${task.parameters.prompt}</p>
    ${task.status === "pending" && html`<p class="hint">${task.route === "degraded" ? taskTexts.held : taskTexts.queued}</p>`}
    <${Progress} task=${task} />
    ${task.status === "done" && html`<${Player} task=${task} />`}
    <${Failure} task=${task} />
    <${Actions} task=${task} />
  </article>`;
}

function NotAccepted({ entry }) {
  const isRefused = entry.is === "refused";
  const nowMs = useNow(500, isRefused);
  const leftS = Math.max(0, Math.ceil((entry.mayGoAtMs - nowMs) / 1000));
  useEffect(() => {
    if (entry.problem) announce(entry.problem.message);
  }, [entry.problem]);
  if (entry.is === "sending") return html`<article class="card task-live"><${Badge} kind="pending">${makeTexts.sending}<//></article>`;
  if (!isRefused) {
    return html`<article class="card task-live">
      <${Badge} kind="pending">${texts.unsent}<//>
    </article>`;
  }
  return html`<article class="card task-live">
    <header><${Badge} kind="failed">${texts.refused}<//></header>
    <p><strong>${entry.problem.title}.</strong> <span class="hint">${entry.problem.message}</span></p>
    <p class="countdown">${leftS > 0 ? texts.again(seconds(leftS)) : texts.mayGo}</p>
    <label class="check">
      <input type="checkbox" checked=${entry.goesByItself} onChange=${(event) => setGoesByItself(entry, event.currentTarget.checked)} />
      ${texts.sendThen}
    </label>
    <div class="buttons">
      <button type="button" class="main" disabled=${leftS > 0} onClick=${() => sendAnew(entry)}>${texts.sendNow}</button>
      <button type="button" class="quiet" onClick=${() => dropRequest(entry)}>${texts.drop}</button>
    </div>
  </article>`;
}
