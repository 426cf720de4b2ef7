/** Watch: the tasks, newest first, live; older ones on demand. */
import { Component, html, useEffect, useMemo, useState } from "../vendor/preact-htm.js";
import { serverNow } from "../core/api.js";
import { seconds, time } from "../core/format.js";
import { listKey, readList, state } from "../core/state.js";
import { createStore, useStore } from "../core/store.js";
import { shownTasks } from "../core/tasks.js";
import { Trouble } from "../parts/basics.js";
import { Icon } from "../parts/icons.js";
import { Thumbnail } from "../parts/picture.js";
import { Progress, TaskBadge } from "../parts/progress.js";
import { app, status as statusTexts, task as taskTexts, watch as texts } from "../texts.js";
import { Lacks } from "../parts/lacks.js";
import { TaskDetail } from "./task.js";

const STATUSES = ["pending", "processing", "done", "failed"];

/** Which tasks are listed, and which were chosen to compare; kept while another view is open. */
const chosen = createStore({ filter: { status: "", model: "" }, pair: [] });

/** Lists the tasks that failed, whatever was listed before. */
export function showFailed() {
  chosen.update({ filter: { status: "failed", model: "" } });
  location.hash = "#/watch";
}

export function Watch({ id }) {
  const { filter, pair } = useStore(chosen, (now) => now);
  const { tasks, lists, settings, mayRead, connection } = useStore(state, (now) => now);
  const list = lists[listKey(filter)];
  useEffect(() => {
    if (mayRead && connection.is === "live" && list === undefined) readList(filter);
  }, [filter, list, mayRead, connection.is]);
  const shown = useMemo(() => shownTasks(tasks, filter, list?.oldest ?? null), [tasks, filter, list?.oldest]);
  if (!mayRead) return html`<${Lacks} scope="read" />`;
  const isFiltered = filter.status !== "" || filter.model !== "";
  return html`<div class="watch ${id ? "has-detail" : ""}">
    <section class="list" aria-labelledby="watch-title">
      <header class="list-head">
        <${id ? "h2" : "h1"} id="watch-title" tabindex="-1">${texts.title}<//>
        <${Filters} filter=${filter} models=${settings?.models ?? []} />
      </header>
      <${Pair} pair=${pair} />
      ${shown.length === 0 && list && !list.isReading && !list.error && html`<${Empty} isFiltered=${isFiltered} />`}
      <ul class="cards">
        ${shown.map(
          (task) => html`<${TaskCard} key=${task.id} task=${task} isOpen=${task.id === id} isChosen=${pair.includes(task.id)} />`,
        )}
      </ul>
      <${Trouble} error=${list?.error} onAgain=${() => readList(filter)} />
      ${list && !list.error && html`<${Older} list=${list} filter=${filter} count=${shown.length} />`}
      ${!list && html`<p class="hint">${app.loading}</p>`}
    </section>
    ${id && html`<${TaskDetail} key=${id} id=${id} />`}
  </div>`;
}

function Empty({ isFiltered }) {
  if (isFiltered) {
    return html`<p class="card empty">
      <button type="button" class="quiet" onClick=${() => chosen.update({ filter: { status: "", model: "" } })}>${texts.emptyFilter}</button>
    </p>`;
  }
  return html`<p class="card empty">${texts.empty} <a href="#/make">${texts.emptyHint}</a></p>`;
}

function Older({ list, filter, count }) {
  return html`<footer class="list-foot">
    <p class="hint">${texts.count(count)}. ${list.isWhole && texts.oldest}</p>
    ${!list.isWhole &&
    html`<button type="button" class="quiet" disabled=${list.isReading} onClick=${() => readList(filter)}>
      ${list.isReading ? app.loading : texts.older}
    </button>`}
  </footer>`;
}

function Filters({ filter, models }) {
  const set = (change) => chosen.update({ filter: { ...filter, ...change } });
  return html`<div class="filters">
    <div class="chips" role="group" aria-label=${texts.status}>
      ${["", ...STATUSES].map(
        (status) =>
          html`<button type="button" class="chip" aria-pressed=${status === filter.status ? "true" : "false"} onClick=${() => set({ status })}>
            ${status === "" ? texts.all : statusTexts[status]}
          </button>`,
      )}
    </div>
    <label class="inline">
      ${texts.model}
      <select value=${filter.model} onChange=${(event) => set({ model: event.currentTarget.value })}>
        <option value="">${texts.all}</option>
        ${models.map((model) => html`<option value=${model.name} selected=${model.name === filter.model}>${model.title}</option>`)}
      </select>
    </label>
  </div>`;
}

function Pair({ pair }) {
  if (pair.length === 0) return null;
  return html`<div class="card pair" role="status">
    <p>${taskTexts.comparing(pair.length)}</p>
    ${pair.length === 2 && html`<a class="button main" href="#/compare/${pair[0]}/${pair[1]}"><${Icon} name="compare" />${taskTexts.compareGo}</a>`}
    <button type="button" class="quiet" onClick=${() => chosen.update({ pair: [] })}>${app.cancel}</button>
  </div>`;
}

/** Of two that are chosen, a third one takes the place of the older choice. */
function choose(id) {
  const { pair } = chosen.get();
  chosen.update({ pair: pair.includes(id) ? pair.filter((each) => each !== id) : [...pair, id].slice(-2) });
}

/** One task in the list. Of a thousand, only those are drawn again that changed. */
class TaskCard extends Component {
  shouldComponentUpdate(next) {
    return next.task !== this.props.task || next.isOpen !== this.props.isOpen || next.isChosen !== this.props.isChosen;
  }

  render({ task, isOpen, isChosen }) {
    const { parameters } = task;
    return html`<li class="card task-card ${isOpen ? "is-open" : ""}">
      <${Thumbnail} task=${task} />
      <div class="task-words">
        <a class="prompt" href="#/watch/${task.id}" aria-current=${isOpen ? "true" : undefined}>${parameters.prompt || taskTexts.noPrompt}</a>
        <p class="facts"><${TaskBadge} task=${task} /> <span>${task.model}</span> <${When} task=${task} /></p>
        <${Progress} task=${task} />
        ${task.error && html`<p class="error-line">${task.error.message}</p>`}
      </div>
      ${task.status === "done" &&
      html`<button type="button" class="chip" aria-pressed=${isChosen ? "true" : "false"} onClick=${() => choose(task.id)}>
        <${Icon} name="compare" />${taskTexts.compare}
      </button>`}
    </li>`;
  }
}

function When({ task }) {
  const [nowMs] = useState(serverNow);
  const lastedS = task.finished_at && task.claimed_at ? (Date.parse(task.finished_at) - Date.parse(task.claimed_at)) / 1000 : null;
  return html`<time datetime=${task.created_at}>${time(task.created_at, nowMs)}</time>${lastedS !== null &&
    html` <span>${taskTexts.took(seconds(lastedS))}</span>`}`;
}
