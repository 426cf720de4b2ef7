/** What happened: the last hour, fallbacks, changes of model, cold starts. */
import { html } from "../vendor/preact-htm.js";
import { serverNow } from "../core/api.js";
import { count, seconds, time } from "../core/format.js";
import { minutesOf, spansOf } from "../core/plots.js";
import { Bars, Spans } from "../parts/plots.js";
import { SwapBar } from "../parts/swapbar.js";
import { swapParts } from "../core/receipt.js";
import { Table } from "../parts/table.js";
import { operate } from "../texts.js";

const HOUR_MS = 3_600_000;
const MODELS_SHOWN = 8;

export function History({ of }) {
  const texts = operate.history;
  const minutes = minutesOf(of);
  const longestS = Math.max(0, ...minutes.map((minute) => minute.longestS));
  const refused = minutes.reduce((sum, minute) => sum + minute.overloaded, 0);
  return html`<section class="card" aria-labelledby="history-title">
    <h2 id="history-title">${texts.title}</h2>
    <${Bars}
      title=${texts.wait}
      summary=${longestS > 0 ? texts.waitSummary(seconds(longestS)) : texts.noWait}
      values=${minutes.map((minute) => minute.meanS)}
      from=${texts.hourAgo}
      to=${texts.now}
      words=${seconds}
    />
    <${Bars}
      title=${texts.overload}
      summary=${texts.overloadSummary(count(refused))}
      values=${minutes.map((minute) => minute.overloaded)}
      from=${texts.hourAgo}
      to=${texts.now}
      words=${count}
      isAlarming
    />
  </section>`;
}

export function Fallbacks({ of }) {
  const texts = operate.fallbacks;
  const all = [...of.current, ...of.past];
  const nowMs = serverNow();
  const { rows, fromMs } = spansOf(all, nowMs, HOUR_MS);
  return html`<section class="card" aria-labelledby="fallbacks-title">
    <h2 id="fallbacks-title">${texts.title}</h2>
    ${all.length === 0
      ? html`<p class="hint">${texts.empty}</p>`
      : html`<${Spans}
            rows=${rows}
            summary=${texts.picture(all.length, seconds((nowMs - fromMs) / 1000))}
            from=${time(fromMs, nowMs)}
            to=${operate.history.now}
            words=${(episode) => texts.causes[episode.cause] ?? episode.cause}
          />
          <details class="more">
            <summary>${texts.more(all.length)}</summary>
            <${Table}
              caption=${texts.title}
              head=${[texts.model, texts.cause, texts.since, texts.until, texts.served]}
              rows=${all.map((episode) => [
                episode.model,
                texts.causes[episode.cause] ?? episode.cause,
                time(episode.since, nowMs),
                episode.until === null ? texts.lasts : time(episode.until, nowMs),
                count(episode.served),
              ])}
            />
          </details>`}
  </section>`;
}

export function Swaps({ of }) {
  const texts = operate.swaps;
  const shown = of.swaps.slice(0, MODELS_SHOWN);
  const totalOf = ({ swap }) => swapParts(swap).reduce((sum, part) => sum + part.s, 0);
  const longestS = Math.max(...shown.map(totalOf));
  const togetherS = shown.reduce((sum, each) => sum + totalOf(each), 0);
  return html`<section class="card" aria-labelledby="swaps-title">
    <h2 id="swaps-title">${texts.title}</h2>
    ${shown.length === 0
      ? html`<p class="hint">${texts.empty}</p>`
      : html`<p class="hint">${texts.summary(shown.length, seconds(togetherS))}</p>
          <ul class="swaps">
            ${shown.map(
              (each) => html`<li key=${each.task_id}>
                <p>
                  <a href="#/watch/${each.task_id}">${texts.from(each.swap.released_model ?? texts.nothing, each.swap.loaded_model)}</a>
                  <span class="hint"> ${time(each.at, serverNow())}, ${seconds(totalOf(each))}</span>
                </p>
                <${SwapBar} swap=${each.swap} longestS=${longestS} />
              </li>`,
            )}
          </ul>`}
  </section>`;
}

export function ColdStarts({ of }) {
  const texts = operate.starts;
  return html`<section class="card" aria-labelledby="starts-title">
    <h2 id="starts-title">${texts.title}</h2>
    ${of.starts.length === 0
      ? html`<p class="hint">${texts.empty}</p>`
      : html`<p>${of.share !== null && texts.share(`${Math.round(of.share * 100)} %`, seconds(of.target_s))}</p>
          <${Table}
            caption=${texts.title}
            head=${[texts.lane, texts.at, texts.took]}
            rows=${of.starts
              .slice(0, MODELS_SHOWN)
              .map((start) => [start.worker, time(start.ended_at, serverNow()), start.seconds === null ? `${texts.gaveUp}: ${start.detail}` : seconds(start.seconds)])}
          />`}
  </section>`;
}
