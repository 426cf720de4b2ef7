/** State that components share: plain data, replaced by `update`, read by `useStore`. */
import { useEffect, useReducer, useRef } from "../vendor/preact-htm.js";

/**
 * @template S
 * @param {S} initial
 */
export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  return {
    get: () => state,
    /** Merges *change*, an object or what a function makes of the state, and tells everybody at once. */
    update(change) {
      state = { ...state, ...(typeof change === "function" ? change(state) : change) };
      for (const listener of [...listeners]) listener();
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** What *select* takes out of *store*; the component is drawn again when that is another value. */
export function useStore(store, select) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  const selected = select(store.get());
  const latest = useRef();
  latest.current = { select, selected };
  useEffect(() => {
    const look = () => {
      if (!Object.is(latest.current.select(store.get()), latest.current.selected)) redraw();
    };
    look(); // it may have changed between drawing and this effect
    return store.subscribe(look);
  }, [store]);
  return selected;
}
