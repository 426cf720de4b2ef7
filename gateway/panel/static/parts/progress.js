/** How far a task is: held, queued, running by step. */
import { html, useEffect, useRef } from "../vendor/preact-htm.js";
import { serverNow } from "../core/api.js";
import { seconds } from "../core/format.js";
import { secondsLeft } from "../core/tasks.js";
import { status as statuses, task as texts } from "../texts.js";
import { announce } from "./announce.js";
import { Badge, useNow } from "./basics.js";

/** What *task* is to the one who waits for it: "held" where no lane has it and the shared worker is busy. */
export function kindOf(task) {
  return task.status === "pending" && task.route === "degraded" ? "held" : task.status;
}

export function TaskBadge({ task }) {
  return html`<${Badge} kind=${kindOf(task)} />`;
}

/** One line for people and screen readers: the step and the time left, or the place and the wait. */
export function progressWords(task, nowMs) {
  if (task.status === "processing") {
    if (!task.progress) return texts.preparing;
    const step = texts.step(task.progress.step, task.progress.steps);
    const left = secondsLeft(task);
    return left === null ? step : `${step}, ${texts.left(seconds(left))}`;
  }
  if (task.status !== "pending" || !task.queue) return "";
  const wait = task.queue.expected_wait_s;
  const expected = wait === null ? "" : `, ${wait < 1 ? texts.startsSoon.toLowerCase() : texts.expected(seconds(wait))}`;
  return `${texts.place(task.queue.position)}${expected}`;
}

/** Says what becomes of *task*: its steps at times, and every change of its state. */
export function useSpoken(task) {
  const before = useRef(null);
  useEffect(() => {
    if (!task) return;
    const words = `${statuses[kindOf(task)]} ${progressWords(task, serverNow())}`.trim();
    if (words !== before.current) announce(texts.news(task.parameters.prompt, words));
    before.current = words;
  }, [task]);
}

/** The bar and its words, while the task has not ended. */
export function Progress({ task }) {
  const isOpen = task.status === "pending" || task.status === "processing";
  useNow(1000, isOpen);
  if (!isOpen) return null;
  const steps = task.progress?.steps;
  return html`<div class="progress">
    ${task.status === "processing" &&
    (steps
      ? html`<progress max=${steps} value=${task.progress.step} aria-label=${texts.progress} />`
      : html`<progress aria-label=${texts.progress} />`)}
    <p>${progressWords(task, serverNow())}</p>
  </div>`;
}
