/** What plots are drawn from. Pure. */

/**
 * The last hour minute by minute, oldest first, all models and routes together.
 * @param {{now: string, bucket_s: number, buckets: {at: string, started: number, wait_sum_s: number, wait_max_s: number, overloaded: number}[]}} history
 */
export function minutesOf(history) {
  const bucketMs = history.bucket_s * 1000;
  const length = Math.round(3_600_000 / bucketMs);
  const nowMs = Date.parse(history.now);
  const minutes = Array.from({ length }, () => ({ started: 0, waitS: 0, longestS: 0, overloaded: 0 }));
  for (const bucket of history.buckets) {
    const back = Math.floor(nowMs / bucketMs) - Math.floor(Date.parse(bucket.at) / bucketMs);
    const minute = minutes[length - 1 - back];
    if (!minute) continue;
    minute.started += bucket.started;
    minute.waitS += bucket.wait_sum_s;
    minute.longestS = Math.max(minute.longestS, bucket.wait_max_s);
    minute.overloaded += bucket.overloaded;
  }
  return minutes.map((minute) => ({ ...minute, meanS: minute.started ? minute.waitS / minute.started : 0 }));
}

/**
 * Episodes as parts of one span of time, a row for each model: `x` and `width` are shares of it.
 * The span reaches back to the oldest episode, and to *leastMs* at least.
 */
export function spansOf(episodes, nowMs, leastMs) {
  const fromMs = Math.min(nowMs - leastMs, ...episodes.map((episode) => Date.parse(episode.since)));
  const share = (ms) => (ms - fromMs) / (nowMs - fromMs);
  const rows = new Map();
  for (const episode of episodes) {
    const x = share(Date.parse(episode.since));
    const end = episode.until === null ? 1 : share(Date.parse(episode.until));
    rows.set(episode.model, [...(rows.get(episode.model) ?? []), { episode, x, width: Math.max(0, end - x) }]);
  }
  return { rows: [...rows].sort(([a], [b]) => (a < b ? -1 : 1)), fromMs };
}
