/** Building blocks that every view uses. */
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { app, status as texts } from "../texts.js";
import { announce } from "./announce.js";
import { Icon } from "./icons.js";

/** Draws its component again each *everyMs*, while *isOn*; the time now. */
export function useNow(everyMs, isOn = true) {
  const [nowMs, setNow] = useState(Date.now());
  useEffect(() => {
    if (!isOn) return undefined;
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs, isOn]);
  return nowMs;
}

/** Calls *look* when its component comes into the page, and when the tab is seen again. */
export function useSeen(look) {
  useEffect(() => {
    const onChange = () => document.visibilityState === "visible" && look();
    document.addEventListener("visibilitychange", onChange);
    look();
    return () => document.removeEventListener("visibilitychange", onChange);
  }, []);
}

/**
 * An action of a button: whether it is under way, what went wrong last, and what starts it.
 * @param {(...args: any[]) => Promise<void>} act
 */
export function useAction(act) {
  const [now, setNow] = useState({ isBusy: false, error: null });
  const run = async (...args) => {
    setNow({ isBusy: true, error: null });
    try {
      await act(...args);
      setNow({ isBusy: false, error: null });
    } catch (error) {
      setNow({ isBusy: false, error });
    }
  };
  return { ...now, run };
}

/** The state of a task or of something like it: a word, a shape and a colour, each of which says it alone. */
export function Badge({ kind, children }) {
  return html`<span class="badge badge-${kind}"><${Icon} name=${kind} />${children ?? texts[kind]}</span>`;
}

/** What went wrong, where it went wrong. */
export function Trouble({ error, onAgain }) {
  if (!error) return null;
  return html`<div class="trouble" role="alert">
    <${Icon} name="failed" />
    <p>${app.failed(error.message)}</p>
    ${onAgain && html`<button type="button" class="quiet" onClick=${onAgain}>${app.tryAgain}</button>`}
  </div>`;
}

/** A dialog over the page, open while it is drawn. Escape, and a button of it, call *onClose*. */
export function Dialog({ title, onClose, children }) {
  const element = useRef();
  useEffect(() => {
    const before = document.activeElement;
    element.current.showModal();
    return () => before?.focus?.();
  }, []);
  const onCancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${element} onCancel=${onCancel} aria-labelledby="dialog-title">
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

/** A question before something that others will feel: it names the effect. */
export function Confirm({ title, effect, yes, isGrave, act, onClose }) {
  const action = useAction(async () => {
    await act();
    onClose();
  });
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${[effect].flat().map((text) => html`<p>${text}</p>`)}
    <${Trouble} error=${action.error} />
    <div class="buttons">
      <button type="button" class="quiet" onClick=${onClose}>${app.cancel}</button>
      <button type="button" class=${isGrave ? "grave" : "main"} disabled=${action.isBusy} onClick=${action.run}>${yes}</button>
    </div>
  <//>`;
}

/** A text to take elsewhere. */
export function CopyBox({ text, label }) {
  const box = useRef();
  const [failed, setFailed] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text); // missing where the page comes over plain HTTP from another machine
      announce(app.copied);
      setFailed(false);
    } catch {
      getSelection().selectAllChildren(box.current);
      setFailed(true);
    }
  };
  return html`<div class="copybox">
    <pre ref=${box} tabindex="0" role="region" aria-label=${label}>${text}</pre>
    <button type="button" class="quiet" onClick=${copy}><${Icon} name="copy" />${app.copy}</button>
    ${failed && html`<p class="hint" role="status">${app.copyFailed}</p>`}
  </div>`;
}
