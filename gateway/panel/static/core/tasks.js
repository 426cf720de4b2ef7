/** The tasks that the page knows: what lists and events make of them. Pure. */

const ENDED = new Set(["done", "failed"]);

/** Whether nothing about *task* changes any more. */
export const hasEnded = (task) => ENDED.has(task.status);

/** Newest first, as the gateway lists them. */
export function byAge(a, b) {
  if (a.created_at !== b.created_at) return a.created_at < b.created_at ? 1 : -1;
  return a.id < b.id ? 1 : -1;
}

/** Whether *fresh* may replace *known*, which may have come on another connection and later. */
export function mayReplace(known, fresh) {
  if (known === undefined) return true;
  if (hasEnded(known) !== hasEnded(fresh)) return hasEnded(fresh);
  const [before, after] = [known, fresh].map((task) => Date.parse(task.timeline.at(-1)?.at ?? task.created_at));
  if (before !== after) return after > before;
  return (fresh.progress?.step ?? 0) >= (known.progress?.step ?? 0);
}

/**
 * *tasks* with those of an answer.
 * @param {Map<string, object>} tasks
 * @param {object[]} answered
 */
export function withAnswered(tasks, answered) {
  const merged = new Map(tasks);
  for (const task of answered) if (mayReplace(merged.get(task.id), task)) merged.set(task.id, task);
  return merged;
}

/** *tasks* after *events* of the stream, whose word counts. */
export function withEvents(tasks, events) {
  const changed = new Map(tasks);
  for (const { event, data } of events) {
    if (event === "task") changed.set(data.id, data);
    else if (event === "gone") changed.delete(data.id);
    else if (event === "places") {
      for (const { id, position, expected_wait_s } of data.places) {
        const task = changed.get(id);
        if (task?.status === "pending") changed.set(id, { ...task, queue: { position, expected_wait_s } });
      }
    }
  }
  return changed;
}

/**
 * What a list shows, newest first: of the tasks that match, those down to where its pages have been read.
 * @param {Map<string, object>} tasks
 * @param {{status: string, model: string}} filter "" stands for every one
 * @param {object | null} oldest the last task that was read; null: the last page was
 */
export function shownTasks(tasks, filter, oldest) {
  const found = [...tasks.values()].filter(
    (task) =>
      (filter.status === "" || task.status === filter.status) &&
      (filter.model === "" || task.model === filter.model) &&
      (oldest === null || byAge(task, oldest) <= 0),
  );
  return found.sort(byAge);
}

/** How many seconds a task that runs will still take, as the gateway said with its newest state; null where it does not know. */
export function secondsLeft(task) {
  return task.status === "processing" ? (task.progress?.eta_s ?? null) : null;
}

/** The parameters that differ between *a* and *b*, by name. */
export function differences(a, b) {
  const names = new Set([...Object.keys(a.parameters), ...Object.keys(b.parameters)]);
  const text = (task, name) => JSON.stringify(name === "model" ? task.model : task.parameters[name]);
  return new Set([...names, "model"].filter((name) => text(a, name) !== text(b, name)));
}
