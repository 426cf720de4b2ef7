/** Lanes by model with their switch, and what is resident on which slot. */
import { html, useState } from "../vendor/preact-htm.js";
import { json, serverNow } from "../core/api.js";
import { seconds, time } from "../core/format.js";
import { Confirm } from "../parts/basics.js";
import { Table } from "../parts/table.js";
import { operate } from "../texts.js";

const texts = operate.lanes;
const slotTexts = operate.slots;

export function Lanes({ of, again }) {
  return html`<section class="card" aria-labelledby="lanes-title">
    <h2 id="lanes-title">${texts.title}</h2>
    ${of.models.map((model) => html`<${ModelLanes} key=${model.model} of=${model} again=${again} />`)}
  </section>`;
}

function ModelLanes({ of, again }) {
  const [isAsking, setAsking] = useState(false);
  const toDegraded = of.mode === "auto";
  const rows = of.lanes.map((lane) => [
    lane.worker,
    html`<span class="lane-state lane-${lane.silent ? "silent" : lane.state}">${lane.silent ? texts.silent : texts.states[lane.state] ?? lane.state}</span> ${lane.detail}`,
    lane.slot,
    seconds(lane.health_age_s),
    time(lane.since, serverNow()),
    lane.warm_after_s === null ? "" : seconds(lane.warm_after_s),
  ]);
  return html`<section class="model-lanes" aria-label=${of.model}>
    <header>
      <h3>${of.model}</h3>
      <p>${texts.goes} <strong>${texts.outcome[of.route.outcome.split(":")[0]] ?? of.route.outcome}</strong>. <span class="hint">${of.route.reason}</span></p>
      <button type="button" class="quiet" onClick=${() => setAsking(true)}>${toDegraded ? texts.toDegraded : texts.toAuto}</button>
    </header>
    ${!toDegraded && html`<p class="notice">${texts.forced}</p>`}
    ${rows.length
      ? html`<${Table} caption=${texts.wanted(of.lanes.length, of.wanted)} head=${[texts.lane, texts.state, texts.slot, texts.health, texts.since, texts.warm]} rows=${rows} />`
      : html`<p class="hint">${texts.none}. ${texts.wanted(0, of.wanted)}.</p>`}
    ${isAsking &&
    html`<${Confirm}
      title=${toDegraded ? texts.degradedTitle(of.model) : texts.autoTitle(of.model)}
      effect=${toDegraded ? texts.degradedEffect(of.model) : texts.autoEffect(of.model)}
      yes=${toDegraded ? texts.toDegraded : texts.toAuto}
      act=${async () => {
        await json(`admin/lanes/${of.model}/mode`, { method: "PUT", body: { mode: toDegraded ? "degraded" : "auto" } });
        again();
      }}
      onClose=${() => setAsking(false)}
    />`}
  </section>`;
}

export function Slots({ of, again }) {
  return html`<section class="card" aria-labelledby="slots-title">
    <h2 id="slots-title">${slotTexts.title}</h2>
    ${of.slots.length === 0 && html`<p class="hint">${slotTexts.empty}</p>`}
    <ul class="slots">${of.slots.map((slot) => html`<${Slot} key=${slot.slot} slot=${slot} again=${again} />`)}</ul>
  </section>`;
}

function Slot({ slot, again }) {
  const [isAsking, setAsking] = useState(false);
  return html`<li class="slot slot-${slot.state}">
    <strong>${slot.slot}</strong>
    <span>${slot.model ?? slotTexts.nothing}</span>
    <span class="hint">${slotTexts.states[slot.state] ?? slot.state}, ${slot.worker}${slot.detail && `, ${slot.detail}`}</span>
    ${slot.state === "quarantined" && html`<button type="button" class="grave" onClick=${() => setAsking(true)}>${slotTexts.lift}</button>`}
    ${isAsking &&
    html`<${Confirm}
      title=${slotTexts.liftTitle(slot.slot)}
      effect=${slotTexts.liftEffect(slot.slot)}
      yes=${slotTexts.lift}
      isGrave
      act=${async () => {
        await json(`admin/slots/${encodeURIComponent(slot.slot)}/quarantine`, { method: "DELETE" });
        again();
      }}
      onClose=${() => setAsking(false)}
    />`}
  </li>`;
}
