/** An image that somebody chose: read, measured, and judged by the limits of its field before anything is sent. */
import { image as texts } from "../texts.js";
import { imageRefusal } from "./form.js";
import { bytes, count } from "./format.js";

/**
 * @param {File} file
 * @param {{media_types: string[], max_bytes: number, max_pixels: number}} limits
 * @returns {Promise<{file: File, name: string, type: string, bitmap: ImageBitmap | null, uri: string | null, facts: string, refusal: string | null}>}
 */
export async function readImage(file, limits) {
  const name = file.name || texts.pasted;
  const bitmap = file.size <= limits.max_bytes ? await decoded(file) : null;
  const found = { type: file.type, bytes: file.size, width: bitmap?.width ?? null, height: bitmap?.height ?? null };
  const refused = imageRefusal(found, limits);
  return {
    file, // to be read again for a model with other limits
    name,
    type: file.type,
    bitmap,
    uri: refused ? null : await dataUri(file),
    facts: bitmap ? texts.facts(name, bitmap.width, bitmap.height, bytes(file.size)) : `${name}, ${bytes(file.size)}`,
    refusal: refused && texts.refusal[refused.why](inWords(refused)),
  };
}

async function decoded(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null; // no image that this browser reads
  }
}

function inWords(refused) {
  if (refused.why === "bytes") return { got: bytes(refused.got), allowed: bytes(refused.allowed) };
  if (refused.why === "pixels") return { got: refused.got, allowed: count(refused.allowed) };
  return { got: refused.got, allowed: refused.allowed?.join(", ") };
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
