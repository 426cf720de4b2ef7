import assert from "node:assert/strict";
import { test } from "node:test";
import {
  differences, mayReplace, secondsLeft, shownTasks, withAnswered, withEvents,
} from "../../../../gateway/panel/static/core/tasks.js";

const at = (second) => `2026-01-01T00:00:${String(second).padStart(2, "0")}Z`;
const task = (id, second, change = {}) => ({
  id, status: "pending", model: "m", created_at: at(second), claimed_at: null, progress: null, queue: null,
  parameters: { words: "x" }, timeline: [{ at: at(second), event: "accept" }], ...change,
});
const known = (...tasks) => new Map(tasks.map((each) => [each.id, each]));
const ids = (tasks) => tasks.map((each) => each.id);

test("an answer that is older than what is known changes nothing", () => {
  const ended = task("a", 1, { status: "done" });
  assert.equal(mayReplace(ended, task("a", 1, { status: "processing" })), false);
  assert.equal(mayReplace(task("a", 1), ended), true);
  const claimed = task("a", 1, { timeline: [{ at: at(5), event: "claim" }] });
  assert.equal(mayReplace(claimed, task("a", 1)), false);
  const step = (n) => task("a", 1, { progress: { step: n, steps: 9 } });
  assert.equal(mayReplace(step(3), step(2)), false);
  assert.equal(mayReplace(step(3), step(4)), true);
  assert.equal(withAnswered(known(ended), [task("a", 1), task("b", 2)]).get("a"), ended);
});

test("the stream brings tasks, takes them away, and moves those that wait", () => {
  const events = [
    { event: "task", data: task("b", 2) },
    { event: "gone", data: { id: "a" } },
    { event: "places", data: { places: [{ id: "b", position: 2, expected_wait_s: 4 }, { id: "x", position: 1, expected_wait_s: null }] } },
    { event: "unknown", data: {} },
  ];
  const after = withEvents(known(task("a", 1)), events);
  assert.deepEqual([...after.keys()], ["b"]);
  assert.deepEqual(after.get("b").queue, { position: 2, expected_wait_s: 4 });
});

test("a place that comes late gives a running task no place", () => {
  const running = task("a", 1, { status: "processing" });
  const event = { event: "places", data: { places: [{ id: "a", position: 1, expected_wait_s: null }] } };
  assert.equal(withEvents(known(running), [event]).get("a").queue, null);
});

test("a list is newest first, and ends where its pages do", () => {
  const tasks = known(task("a", 1), task("b", 2, { status: "done" }), task("c", 3, { model: "other" }), task("d", 3));
  const all = { status: "", model: "" };
  assert.deepEqual(ids(shownTasks(tasks, all, null)), ["d", "c", "b", "a"]);
  assert.deepEqual(ids(shownTasks(tasks, all, tasks.get("b"))), ["d", "c", "b"]);
  assert.deepEqual(ids(shownTasks(tasks, { status: "pending", model: "m" }, null)), ["d", "a"]);
});

test("the time left is what the gateway says", () => {
  const running = task("a", 0, { status: "processing", progress: { step: 2, steps: 8, eta_s: 30.5 } });
  assert.equal(secondsLeft(running), 30.5);
  assert.equal(secondsLeft({ ...running, progress: { step: 0, steps: 8, eta_s: null } }), null);
  assert.equal(secondsLeft({ ...running, progress: null }), null);
  assert.equal(secondsLeft({ ...running, status: "done" }), null);
});

test("two tasks differ where a parameter or the model does", () => {
  const a = task("a", 1, { parameters: { words: "x", seed: 1 } });
  const b = task("b", 1, { model: "n", parameters: { words: "x", seed: 2 } });
  assert.deepEqual([...differences(a, b)].sort(), ["model", "seed"]);
  assert.equal(differences(a, a).size, 0);
});
