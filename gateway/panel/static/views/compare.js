/** Two tasks side by side: their videos, and in what their parameters differ. */
import { html, useEffect, useRef } from "../vendor/preact-htm.js";
import { label } from "../core/format.js";
import { fetchTask, state } from "../core/state.js";
import { useStore } from "../core/store.js";
import { differences } from "../core/tasks.js";
import { Player } from "../parts/actions.js";
import { Trouble, useAction } from "../parts/basics.js";
import { Icon } from "../parts/icons.js";
import { TaskBadge } from "../parts/progress.js";
import { app, compare as texts, task as taskTexts } from "../texts.js";
import { Parameters } from "./task.js";

export function Compare({ ids }) {
  const tasks = useStore(state, (now) => now.tasks);
  const isLive = useStore(state, (now) => now.connection.is === "live");
  const both = ids.map((id) => tasks.get(id));
  const asking = useAction(async () => {
    for (const [n, id] of ids.entries()) if (!both[n]) await fetchTask(id);
  });
  useEffect(() => {
    if (isLive && both.some((task) => !task)) asking.run();
  }, [ids.join(), isLive]);
  const players = [useRef(), useRef()];
  const board = useRef();
  const playBoth = () => {
    for (const player of players) {
      if (!player.current?.isConnected) continue;
      player.current.currentTime = 0;
      player.current.play();
    }
    for (const button of board.current.querySelectorAll(".play")) button.click();
  };
  const differing = both.every(Boolean) ? differences(...both) : new Set();
  return html`<section class="compare" aria-labelledby="compare-title">
    <header class="list-head">
      <h1 id="compare-title" tabindex="-1">${texts.title}</h1>
      <div class="buttons">
        <button type="button" class="main" onClick=${playBoth}><${Icon} name="play" />${texts.playBoth}</button>
        <a class="button quiet" href="#/watch"><${Icon} name="back" />${taskTexts.back}</a>
      </div>
    </header>
    <${Trouble} error=${asking.error} onAgain=${asking.run} />
    ${both.every(Boolean) && html`<p>${differing.size ? texts.differ([...differing].map(label).join(", ")) : texts.same}</p>`}
    <div class="two" ref=${board}>
      ${both.map((task, n) =>
        task
          ? html`<article class="card" key=${task.id} aria-label=${task.parameters.prompt}>
              <header><${TaskBadge} task=${task} /> <span>${task.model}</span></header>
              <${Player} task=${task} player=${players[n]} />
              <${Parameters} task=${task} marked=${differing} mark=${texts.differs} />
            </article>`
          : html`<p class="card empty">${asking.error ? taskTexts.gone : app.loading}</p>`,
      )}
    </div>
  </section>`;
}
