/**
 * A form out of `GET /settings`, and a request out of what was entered. Pure.
 *
 * No field is known by its name here: its kind follows from the limits that the gateway gives for it.
 */

/**
 * @typedef {{name: string, kind: "text" | "image" | "number" | "fixed", limits: object, required: boolean}} Field
 */

/**
 * The fields of *model*, in the gateway's order.
 * @param {{constraints: Record<string, any>}} model an entry of `models` of the settings
 * @returns {Field[]}
 */
export function fieldsOf(model) {
  return Object.entries(model.constraints).flatMap(([name, limits]) => {
    const kind = kindOf(limits);
    const required = limits?.presence === "required" || limits?.min_chars > 0;
    return kind === null ? [] : [{ name, kind, limits, required }];
  });
}

function kindOf(limits) {
  if (limits === null || typeof limits !== "object") return null; // a limit of several fields together
  if ("max_chars" in limits) return "text";
  if ("presence" in limits) return limits.presence === "unsupported" ? null : "image";
  return limits.fixed === null ? "number" : "fixed";
}

/**
 * The body of a request: only what was entered. What is left out takes the gateway's default.
 * @param {{model: {name: string}, fields: Field[], values: Record<string, string>, image: {uri: string} | null, priority: string}} entered
 */
export function bodyOf({ model, fields, values, image, priority }) {
  const body = { model: model.name };
  for (const { name, kind } of fields) {
    const value = values[name] ?? "";
    if (kind === "image" && image) body[name] = image.uri;
    else if (kind === "text" && value !== "") body[name] = value;
    else if (kind === "number" && value.trim() !== "") body[name] = numberOf(value);
  }
  if (priority) body.priority = priority;
  return body;
}

// What is no number goes to the gateway as it is: its refusal then stands at the field.
function numberOf(text) {
  const value = Number(text.trim().replace(",", "."));
  return Number.isFinite(value) ? value : text;
}

/**
 * The errors of a 422 by the name of their field; those of no field of the form are under "".
 * @param {{pointer: string, message: string}[]} errors
 * @param {string[]} names the fields that are shown
 */
export function errorsByField(errors, names) {
  const found = {};
  for (const { pointer, message } of errors) {
    const name = pointer.replace(/^\//, "");
    const place = names.includes(name) ? name : "";
    (found[place] ??= []).push(place === "" ? message : message.replace(`${name}: `, ""));
  }
  return found;
}

/**
 * Why *image* would be refused by *limits*: the key of a text and its values, or null.
 * @param {{type: string, bytes: number, width: number | null, height: number | null}} image
 * @param {{media_types: string[], max_bytes: number, max_pixels: number}} limits
 */
export function imageRefusal(image, limits) {
  if (!limits.media_types.includes(image.type)) return { why: "type", got: image.type, allowed: limits.media_types };
  if (image.bytes > limits.max_bytes) return { why: "bytes", got: image.bytes, allowed: limits.max_bytes };
  if (image.width === null) return { why: "unreadable" };
  if (image.width * image.height > limits.max_pixels) {
    return { why: "pixels", got: `${image.width} × ${image.height}`, allowed: limits.max_pixels };
  }
  return null;
}
