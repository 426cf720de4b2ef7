/** One task, whole: video, progress, parameters, history, and for operators why it went where it went. */
import { html, useEffect, useRef } from "../vendor/preact-htm.js";
import { serverNow } from "../core/api.js";
import { bytes, count, label, seconds, time } from "../core/format.js";
import { receiptWords } from "../core/receipt.js";
import { fetchTask, state } from "../core/state.js";
import { useStore } from "../core/store.js";
import { Actions, Player } from "../parts/actions.js";
import { Trouble, useAction } from "../parts/basics.js";
import { Failure } from "../parts/failure.js";
import { Icon } from "../parts/icons.js";
import { Progress, TaskBadge, useSpoken } from "../parts/progress.js";
import { SwapBar } from "../parts/swapbar.js";
import { app, task as texts } from "../texts.js";
import { Explain } from "./explain.js";

export function TaskDetail({ id }) {
  const task = useStore(state, (now) => now.tasks.get(id));
  const settings = useStore(state, (now) => now.settings);
  const isLive = useStore(state, (now) => now.connection.is === "live");
  const asking = useAction(() => fetchTask(id));
  const heading = useRef();
  useEffect(() => {
    if (!task && isLive) asking.run();
  }, [id, isLive]);
  useEffect(() => heading.current?.focus(), [id, task === undefined]);
  useSpoken(task);
  return html`<aside class="card detail" aria-labelledby="detail-title">
    <a class="back" href="#/watch"><${Icon} name="back" />${texts.back}</a>
    ${task
      ? html`<${Whole} task=${task} settings=${settings} heading=${heading} />`
      : asking.error?.code === "task_not_found"
        ? html`<p class="empty" role="alert">${texts.gone}</p>`
        : asking.error
          ? html`<${Trouble} error=${asking.error} onAgain=${asking.run} />`
          : html`<p class="hint">${app.loading}</p>`}
  </aside>`;
}

function Whole({ task, settings, heading }) {
  const isOperator = settings?.caller.scopes.includes("admin");
  return html`
    <header>
      <${TaskBadge} task=${task} />
      <h1 id="detail-title" ref=${heading} tabindex="-1">${task.parameters.prompt || texts.noPrompt}</h1>
    </header>
    ${task.status === "pending" && html`<p class="hint">${task.route === "degraded" ? texts.held : texts.queued}</p>`}
    <${Progress} task=${task} />
    ${task.status === "done" && html`<${Player} task=${task} />`}
    <${Failure} task=${task} />
    <${Actions} task=${task} onAgain=${(made) => (location.hash = `#/watch/${made.id}`)} />
    ${task.warnings.length > 0 &&
    html`<section><h2>${texts.warnings}</h2><ul>${task.warnings.map((each) => html`<li>${each.message}</li>`)}</ul></section>`}
    <section><h2>${texts.sections.parameters}</h2><${Parameters} task=${task} /></section>
    <section><h2>${texts.sections.timeline}</h2><${Timeline} task=${task} /></section>
    ${task.swap &&
    html`<section>
      <h2>${texts.sections.swap}</h2>
      <p>${receiptWords(task.swap).join(" ")}</p>
      <${SwapBar} swap=${task.swap} />
    </section>`}
    <section><h2>${texts.sections.facts}</h2><${Facts} task=${task} traceUrl=${settings?.trace_url ?? null} /></section>
    ${isOperator && html`<${Explain} task=${task} />`}
  `;
}

/** The parameters as accepted; *marked* names those to point out, with the word that does it. */
export function Parameters({ task, marked = new Set(), mark = "" }) {
  const shown = Object.entries(task.parameters).filter(([, value]) => value !== null && value !== "");
  return html`<dl class="pairs">
    ${shown.map(
      ([name, value]) => html`<div class=${marked.has(name) ? "is-marked" : ""}>
        <dt>${label(name)}${marked.has(name) && html` <span class="mark">${mark}</span>`}</dt>
        <dd>${inWords(value)}</dd>
      </div>`,
    )}
  </dl>`;
}

function inWords(value) {
  if (typeof value === "number") return String(value);
  if (typeof value === "object") return texts.image(value.width, value.height, bytes(value.bytes));
  return value;
}

function Timeline({ task }) {
  const nowMs = serverNow();
  return html`<ol class="timeline">
    ${task.timeline.map((entry, n) => {
      const afterS = n === 0 ? null : (Date.parse(entry.at) - Date.parse(task.timeline[n - 1].at)) / 1000;
      return html`<li>
        <time datetime=${entry.at}>${time(entry.at, nowMs)}</time>
        <span><strong>${label(entry.event)}</strong> ${entry.detail}</span>
        <span class="hint">${afterS !== null && `+ ${seconds(Math.max(0, afterS))}`}</span>
      </li>`;
    })}
  </ol>`;
}

function Facts({ task, traceUrl }) {
  const { video } = task;
  const rows = {
    id: html`<code>${task.id}</code>`,
    model: task.model,
    route: texts.routes[task.route] ?? task.route,
    worker: task.worker,
    attempt: task.attempt || null,
    priority: task.priority,
    labels: Object.entries(task.labels ?? {}).map(([name, value]) => `${name}: ${value}`).join(", "),
    size: video && texts.videoFacts(video.width, video.height, count(video.frames), video.fps, bytes(video.bytes)),
    trace: task.trace_id && (traceUrl ? html`<a href=${traceUrl.replace("{trace_id}", task.trace_id)}>${task.trace_id}</a>` : html`<code>${task.trace_id}</code>`),
  };
  return html`<dl class="pairs">
    ${Object.entries(rows).map(([name, value]) => value && html`<div><dt>${texts.facts[name]}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}
