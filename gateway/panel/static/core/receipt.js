/** A swap receipt in plain words, and the parts of its time. Pure. */
import { swap as texts } from "../texts.js";
import { bytes, seconds } from "./format.js";

/** @returns {string[]} sentences, in the order in which it happened */
export function receiptWords(swap) {
  const said = [swap.released_model === null ? texts.heldNothing(swap.slot) : texts.held(swap.slot, swap.released_model)];
  if (swap.how === "unloaded") said.push(texts.unloaded(seconds(swap.release_s)));
  if (swap.how === "killed") said.push(texts.killed(swap.reason));
  if (swap.alive.length) said.push(texts.alive(swap.alive.join(", ")));
  said.push(proof(swap));
  if (swap.free_bytes !== null) said.push(texts.room(bytes(swap.free_bytes), bytes(swap.needed_bytes)));
  said.push(texts.loaded(swap.loaded_model, seconds(swap.load_s)));
  return said;
}

function proof(swap) {
  if (swap.proof === "base") return texts.proof.base(swap.samples, bytes(swap.after_bytes), bytes(swap.base_bytes + swap.tolerance_bytes));
  if (swap.proof === "own_figure") {
    return texts.proof.own_figure(swap.samples, bytes(swap.own_bytes), bytes(swap.own_base_bytes + swap.tolerance_bytes));
  }
  return (texts.proof[swap.proof] ?? texts.proof[""])(swap.samples);
}

/** @returns {{name: string, s: number}[]} what the time of the swap went into, first to last */
export function swapParts(swap) {
  const known = (swap.read_s ?? 0) + (swap.copy_s ?? 0);
  const all = {
    release_s: swap.release_s,
    verify_s: swap.verify_s,
    read_s: swap.read_s,
    copy_s: swap.copy_s,
    rest_s: Math.max(0, swap.load_s - known),
    first_step_s: swap.first_step_s,
  };
  return Object.entries(all).flatMap(([name, s]) => (s ? [{ name: texts.parts[name], s }] : []));
}
