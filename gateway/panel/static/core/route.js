/** Which view the address names: the part behind `#`, so that one page serves every view behind every prefix. */
import { createStore } from "./store.js";

/** @returns {{view: string, ids: string[]}} */
export function readHash(hash) {
  const [view, ...ids] = hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { view: view || "make", ids: ids.filter(Boolean) };
}

export const route = createStore(readHash(location.hash));

addEventListener("hashchange", () => route.update(readHash(location.hash)));
