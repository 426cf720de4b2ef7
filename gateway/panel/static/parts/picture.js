/** A frame of a task's video, fetched with the key when it comes into sight. */
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { objectUrl } from "../core/state.js";
import { task as texts } from "../texts.js";
import { Icon } from "./icons.js";

/** @param {{task: object}} props */
export function Thumbnail({ task }) {
  const place = useRef();
  const [url, setUrl] = useState(null);
  const path = task.links.thumbnail ?? null;
  useEffect(() => {
    if (path === null) return undefined;
    const leaving = new AbortController();
    let made = null;
    const load = async () => {
      try {
        made = await objectUrl(path, leaving.signal);
        setUrl(made);
      } catch {
        // no picture, then: the card says everything in words
      }
    };
    const sight = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      sight.disconnect();
      load();
    });
    sight.observe(place.current);
    return () => {
      sight.disconnect();
      leaving.abort();
      if (made !== null) URL.revokeObjectURL(made);
    };
  }, [path]);
  return html`<div class="thumbnail" ref=${place}>
    ${url === null ? html`<${Icon} name="image" />` : html`<img src=${url} alt=${texts.thumbnail(task.parameters.prompt)} />`}
  </div>`;
}
