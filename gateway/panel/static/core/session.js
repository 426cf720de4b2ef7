/** The API key: entered once, kept for this tab's session alone, and sent in a header, never in an address. */
import { createStore } from "./store.js";

const NAME = "warmlane.key";

/** *key*: null without one. *refused*: the gateway wants a key ("missing"), or does not know this one ("unknown"). */
export const session = createStore({ key: sessionStorage.getItem(NAME), refused: null });

/** @param {string} key */
export function useKey(key) {
  sessionStorage.setItem(NAME, key);
  session.update({ key, refused: null });
}

export function forgetKey() {
  sessionStorage.removeItem(NAME);
  session.update({ key: null, refused: null });
}

/** The gateway answered 401 to a request that was sent with *key*. */
export function keyWasRefused(key) {
  if (key !== session.get().key) return; // another one was entered meanwhile
  session.update({ refused: key === null ? "missing" : "unknown" });
}
