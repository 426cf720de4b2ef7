/** Make: a form out of the settings, and what was sent with it. */
import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact-htm.js";
import { Problem } from "../core/api.js";
import { bodyOf, errorsByField, fieldsOf } from "../core/form.js";
import { readImage } from "../core/image.js";
import { submit } from "../core/requests.js";
import { session } from "../core/session.js";
import { refreshReadiness, state } from "../core/state.js";
import { useStore } from "../core/store.js";
import { Trouble, useAction, useSeen } from "../parts/basics.js";
import { FieldInput, focusField } from "../parts/fields.js";
import { make as texts } from "../texts.js";
import { Lacks } from "../parts/lacks.js";
import { CopyAs } from "./copy.js";
import { Sent } from "./sent.js";

const DRAFT = "warmlane.draft";

function readDraft() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT)) ?? {};
  } catch {
    return {};
  }
}

// Beyond the views, so that going elsewhere and back loses nothing; the text outlives a reload too.
let draft = { model: "", values: {}, priority: "", ...readDraft(), image: null };

function keep(changes) {
  draft = { ...draft, ...changes };
  const { image, ...texts } = draft;
  sessionStorage.setItem(DRAFT, JSON.stringify(texts));
}

export function Make() {
  const settings = useStore(state, (now) => now.settings);
  if (!settings) return null;
  if (!settings.caller.scopes.includes("submit") && !settings.caller.scopes.includes("admin")) return html`<${Lacks} scope="submit" />`;
  return html`<div class="make">
    <${Form} settings=${settings} />
    <${Sent} />
  </div>`;
}

function Form({ settings }) {
  const [entered, setEntered] = useState(draft);
  const [errors, setErrors] = useState({});
  const summary = useRef();
  const form = useRef();
  const readiness = useStore(state, (now) => now.readiness);
  const model = settings.models.find((each) => each.name === entered.model) ?? settings.models[0];
  const fields = useMemo(() => fieldsOf(model), [model]);
  const imageField = fields.find((field) => field.kind === "image");
  const enter = (changes) => {
    keep(changes);
    setEntered(draft);
  };
  const take = async (file) => enter({ image: await readImage(file, imageField.limits) });
  const choose = async (name) => {
    const limits = fieldsOf(settings.models.find((each) => each.name === name)).find((field) => field.kind === "image")?.limits;
    const { image } = draft;
    enter({ model: name, ...(image && limits && { image: await readImage(image.file, limits) }) });
  };

  usePasted(imageField ? take : null);
  useSeen(refreshReadiness);

  const sending = useAction(async () => {
    setErrors({});
    if (imageField && entered.image?.refusal) return focusField(imageField.name);
    try {
      await submit(bodyOf({ model, fields, values: entered.values, image: entered.image, priority: entered.priority }));
    } catch (error) {
      if (!(error instanceof Problem) || error.errors.length === 0) throw error;
      setErrors(errorsByField(error.errors, fields.map((field) => field.name)));
    }
  });

  // when the fields show what is wrong with them, the keyboard goes to the first one
  useEffect(() => {
    const first = fields.find((field) => errors[field.name]);
    if (!first) return summary.current?.focus();
    const closed = document.getElementById(`field-${first.name}`)?.closest("details:not([open])");
    if (closed) closed.open = true;
    focusField(first.name);
  }, [errors]);

  const input = (field) =>
    html`<${FieldInput}
      key=${field.name}
      field=${field}
      enforcement=${model.enforcement}
      value=${entered.values[field.name] ?? ""}
      image=${entered.image}
      errors=${errors[field.name]}
      onInput=${(value) => enter({ values: { ...entered.values, [field.name]: value } })}
      onImage=${(image) => enter({ image })}
    />`;
  const isFirst = (field) => field.required || field.kind === "image";
  const wrong = Object.values(errors).flat().length;

  return html`<form
    class="card form"
    ref=${form}
    novalidate
    onSubmit=${(event) => {
      event.preventDefault();
      sending.run();
    }}
    aria-labelledby="make-title"
  >
    <h1 id="make-title" tabindex="-1">${texts.title}</h1>
    ${wrong > 0 &&
    html`<div class="trouble" role="alert" tabindex="-1" ref=${summary}>
      <p>${texts.wrong(wrong)} ${(errors[""] ?? []).join(" ")}</p>
    </div>`}
    <${ModelChoice} models=${settings.models} chosen=${model} readiness=${readiness} onChoose=${choose} />
    ${fields.filter(isFirst).map(input)}
    <details class="more">
      <summary>${texts.more}</summary>
      ${fields.filter((field) => field.kind === "text" && !isFirst(field)).map(input)}
      <div class="numbers">${fields.filter((field) => field.kind === "number" || field.kind === "fixed").map(input)}</div>
      <${PriorityChoice} settings=${settings} chosen=${entered.priority} onChoose=${(priority) => enter({ priority })} />
    </details>
    <${Trouble} error=${sending.error} />
    <div class="buttons">
      <button type="submit" class="main" disabled=${sending.isBusy}>${sending.isBusy ? texts.sending : texts.send}</button>
      <button type="button" class="quiet" onClick=${() => enter({ values: {}, image: null, priority: "" })}>${texts.clear}</button>
    </div>
    <${CopyAs}
      make=${(base) => ({
        base,
        body: bodyOf({ model, fields, values: entered.values, image: entered.image, priority: entered.priority }),
        image: entered.image?.uri && imageField ? { field: imageField.name, name: entered.image.name, type: entered.image.type } : null,
        hasKey: session.get().key !== null,
      })}
    />
  </form>`;
}

function ModelChoice({ models, chosen, readiness, onChoose }) {
  return html`<fieldset class="models">
    <legend>${texts.model}</legend>
    ${models.map(
      (model) => html`<label class="model" key=${model.name}>
        <input type="radio" name="model" value=${model.name} checked=${model === chosen} onChange=${() => onChoose(model.name)} />
        <span class="model-title">${model.title}</span>
        <span class="hint">${model.name}, ${model.modes.map((mode) => texts.modes[mode] ?? mode).join(" or ")}</span>
        ${readiness?.[model.name] && html`<${Readiness} of=${readiness[model.name]} />`}
      </label>`,
    )}
  </fieldset>`;
}

function Readiness({ of }) {
  const [kind, text] = of.warm ? ["warm", texts.ready] : of.ready ? ["cool", texts.shared] : ["cold", texts.nobody];
  return html`<span class="readiness readiness-${kind}">${text}</span>`;
}

function PriorityChoice({ settings, chosen, onChoose }) {
  return html`<div class="field">
    <label for="field-priority">${texts.priority}</label>
    <select
      id="field-priority"
      aria-describedby="field-priority-help"
      value=${chosen || settings.default_priority}
      onChange=${(event) => onChoose(event.currentTarget.value)}
    >
      ${settings.priorities.map(
        ({ name, allowed }) =>
          html`<option value=${name} disabled=${!allowed} selected=${name === (chosen || settings.default_priority)}>
            ${texts.priorityLabel(name, allowed)}
          </option>`,
      )}
    </select>
    <p class="hint" id="field-priority-help">${texts.priorityHelp}</p>
  </div>`;
}

/** Hands an image that is pasted anywhere on the page to *take*; null: nobody takes one. */
function usePasted(take) {
  const latest = useRef();
  latest.current = take;
  useEffect(() => {
    const onPaste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (!file || !latest.current) return;
      event.preventDefault();
      latest.current(file);
    };
    addEventListener("paste", onPaste);
    return () => removeEventListener("paste", onPaste);
  }, []);
}
