/** One field of the form, drawn by its kind, with its limits, its help and what is wrong with it. */
import { html, useRef, useState } from "../vendor/preact-htm.js";
import { bytes, count, label } from "../core/format.js";
import { readImage } from "../core/image.js";
import { image as imageTexts, make as texts } from "../texts.js";
import { Icon } from "./icons.js";
import { PreviewCanvas } from "./preview.js";

const idOf = (name) => `field-${name}`;

/** What stands around every control: label, help, errors, and their ids for `aria-describedby`. */
function Around({ field, help, errors, children }) {
  const id = idOf(field.name);
  return html`<div class="field field-${field.kind} ${errors ? "is-wrong" : ""}">
    <label for=${id}>${label(field.name)}${field.required && html` <span class="required">${texts.required}</span>`}</label>
    ${children}
    ${help && html`<p class="hint" id="${id}-help">${help}</p>`}
    ${errors && html`<p class="error" id="${id}-error"><${Icon} name="failed" />${errors.join(" ")}</p>`}
  </div>`;
}

function described(field, help, errors) {
  const id = idOf(field.name);
  const by = [help && `${id}-help`, errors && `${id}-error`].filter(Boolean).join(" ");
  return { id, "aria-describedby": by || undefined, "aria-invalid": errors ? "true" : undefined };
}

function TextInput({ field, value, errors, onInput }) {
  const { min_chars, max_chars, guided_default } = field.limits;
  const length = texts.characters(count([...value].length), count(max_chars));
  const help = guided_default ? `${length}. ${texts.usedWhenEmpty}` : length;
  return html`<${Around} field=${field} help=${help} errors=${errors}>
    <textarea
      ...${described(field, help, errors)}
      rows=${min_chars > 0 ? 4 : 3}
      placeholder=${guided_default ?? ""}
      aria-required=${min_chars > 0 ? "true" : undefined}
      value=${value}
      onInput=${(event) => onInput(event.currentTarget.value)}
    />
  <//>`;
}

function NumberInput({ field, value, errors, onInput }) {
  const { minimum, maximum, step, default: given } = field.limits;
  const help = [
    texts.range(count(minimum), count(maximum)),
    ...(step ? [texts.steps(step)] : []),
    given === null ? texts.chosenWhenEmpty : texts.whenEmpty(count(given)),
  ].join(", ");
  return html`<${Around} field=${field} help=${help} errors=${errors}>
    <input
      ...${described(field, help, errors)}
      type="number"
      inputmode="decimal"
      min=${minimum}
      max=${maximum}
      step=${step ?? "any"}
      placeholder=${given ?? ""}
      value=${value}
      onInput=${(event) => onInput(event.currentTarget.value)}
    />
  <//>`;
}

function FixedValue({ field, enforcement }) {
  const help = field.limits.reason || texts.fixedReason[enforcement];
  return html`<${Around} field=${field} help=${help}>
    <output ...${described(field, help)} tabindex="0"><${Icon} name="lock" />${texts.fixed(count(field.limits.fixed))}</output>
  <//>`;
}

function ImageInput({ field, image, errors, onImage }) {
  const { media_types, max_bytes, max_pixels } = field.limits;
  const [isOver, setOver] = useState(false);
  const chooser = useRef();
  const types = media_types.map((type) => type.replace("image/", "").toUpperCase()).join(", ");
  const help = imageTexts.limits(types, bytes(max_bytes), count(max_pixels));
  const wrong = image?.refusal ? [image.refusal] : errors;
  const take = async (file) => file && onImage(await readImage(file, field.limits));
  const onDrop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files[0]);
  };
  const onRemove = () => {
    chooser.current.value = "";
    onImage(null);
    chooser.current.focus();
  };
  return html`<${Around} field=${field} help=${help} errors=${wrong}>
    <div
      class="drop ${isOver ? "is-over" : ""}"
      onDragOver=${(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave=${() => setOver(false)}
      onDrop=${onDrop}
    >
      ${image && !image.refusal
        ? html`<${PreviewCanvas} image=${image} />`
        : html`<p><${Icon} name="image" />${imageTexts.drop} <span class="link" aria-hidden="true">${imageTexts.choose}</span></p>`}
      <input
        ...${described(field, help, wrong)}
        ref=${chooser}
        type="file"
        accept=${media_types.join(",")}
        onChange=${(event) => take(event.currentTarget.files[0])}
      />
    </div>
    ${image && html`<p class="picked">
      <span>${image.facts}</span>
      <button type="button" class="quiet" onClick=${onRemove}>${imageTexts.remove}</button>
    </p>`}
  <//>`;
}

const CONTROLS = { text: TextInput, number: NumberInput, fixed: FixedValue, image: ImageInput };

/** The control for *field*. */
export function FieldInput(props) {
  return html`<${CONTROLS[props.field.kind]} ...${props} />`;
}

/** Puts the keyboard into the field *name*. */
export function focusField(name) {
  document.getElementById(idOf(name))?.focus();
}
