/** Small pictures beside words, never instead of them. */
import { html } from "../vendor/preact-htm.js";

const PATHS = {
  pending: "M12 6v6l4 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  held: "M9 8v8M15 8v8M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  processing: "M21 12a9 9 0 1 1-6.2-8.6",
  done: "M8 12.5l3 3 5.5-6.5M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  failed: "M12 8v5M12 16.4v.1M10.3 4.2L2.6 17.5A2 2 0 0 0 4.3 20.5h15.4a2 2 0 0 0 1.7-3L13.7 4.2a2 2 0 0 0-3.4 0z",
  lock: "M7 11V8a5 5 0 0 1 10 0v3M6 11h12v9H6z",
  key: "M15 9a4 4 0 1 1-3.2 6.4L4 21M7 18l2 2M4 21l-1-1M15 9a4 4 0 0 0-3.2 6.4",
  play: "M8 5.5v13l11-6.5z",
  download: "M12 4v11M7.5 11L12 15.5 16.5 11M5 19.5h14",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.4v.1",
  again: "M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5",
  close: "M6 6l12 12M18 6L6 18",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  back: "M14 6l-6 6 6 6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
};

/** @param {{name: keyof typeof PATHS}} props */
export function Icon({ name }) {
  return html`<svg class="icon icon-${name}" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>`;
}
