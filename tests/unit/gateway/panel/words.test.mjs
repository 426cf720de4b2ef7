import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, label, seconds } from "../../../../gateway/panel/static/core/format.js";
import { minutesOf, spansOf } from "../../../../gateway/panel/static/core/plots.js";
import { receiptWords, swapParts } from "../../../../gateway/panel/static/core/receipt.js";
import { EventParser } from "../../../../gateway/panel/static/core/sse.js";

test("sizes and spans have the unit that people would choose", () => {
  assert.deepEqual([0, 999, 1000, 1292922880].map(bytes), ["0 B", "999 B", "1.0 kB", "1.3 GB"]);
  assert.deepEqual([0.04, 9.96, 59.4, 60, 200, 3660, 90000].map(seconds), [
    "0 s", "10 s", "59 s", "1 min", "3 min 20 s", "1 h 1 min", "1 d 1 h",
  ]);
});

test("a name of the API becomes a label", () => {
  assert.deepEqual(["num_frames", "fps", "prompt"].map(label), ["Num frames", "FPS", "Prompt"]);
});

const SWAP = {
  slot: "cpu-0", released_model: "a", loaded_model: "b", how: "unloaded", reason: "", alive: [], probe: "rss", proof: "base",
  base_bytes: 537e6, before_bytes: 1293e6, after_bytes: 551e6, tolerance_bytes: 48e6, own_base_bytes: null, own_bytes: null,
  free_bytes: 21.8e9, needed_bytes: 852e6, samples: 2, release_s: 0.1, verify_s: 0.12, load_s: 0.4, read_s: 0.3, copy_s: 0,
  first_step_s: null,
};

test("a swap receipt reads as sentences", () => {
  assert.deepEqual(receiptWords(SWAP), [
    "The slot cpu-0 held a.",
    "It was unloaded in 0.1 s.",
    "2 samples in a row showed 551 MB in use; up to 585 MB would have been as good as empty.",
    "22 GB were free, and 852 MB were needed.",
    "Only then was b loaded, in 0.4 s.",
  ]);
  const killed = { ...SWAP, released_model: null, how: "killed", reason: "leak", alive: ["vae"], proof: "no_pipeline", free_bytes: null };
  assert.deepEqual(receiptWords(killed), [
    "The slot cpu-0 held no model.",
    "Its process was ended (leak).",
    "These parts would not go: vae.",
    "Its process was gone, which 2 samples confirm.",
    "Only then was b loaded, in 0.4 s.",
  ]);
});

test("the parts of a swap are as long as the swap", () => {
  const parts = swapParts(SWAP);
  assert.deepEqual(parts.map((part) => part.name), ["release", "proof", "read", "rest of the load"]);
  assert.ok(Math.abs(parts.reduce((sum, part) => sum + part.s, 0) - 0.62) < 1e-9);
});

test("the last hour has every minute, and those of all models together", () => {
  const bucket = (at, change) => ({ at, started: 1, wait_sum_s: 2, wait_max_s: 2, overloaded: 0, ...change });
  const minutes = minutesOf({
    now: "2026-01-01T01:00:30Z", bucket_s: 60,
    buckets: [
      bucket("2026-01-01T00:00:00Z", {}), // an hour and half a minute ago: over
      bucket("2026-01-01T00:01:00Z", { overloaded: 3 }),
      bucket("2026-01-01T01:00:00Z", {}),
      bucket("2026-01-01T01:00:00Z", { started: 3, wait_sum_s: 10, wait_max_s: 7 }),
    ],
  });
  assert.equal(minutes.length, 60);
  assert.equal(minutes[0].overloaded, 3);
  assert.deepEqual(minutes.at(-1), { started: 4, waitS: 12, longestS: 7, overloaded: 0, meanS: 3 });
  assert.equal(minutes[30].meanS, 0);
});

test("episodes are shares of one span, which reaches back to the oldest", () => {
  const nowMs = Date.parse("2026-01-01T02:00:00Z");
  const episodes = [
    { model: "b", since: "2026-01-01T01:00:00Z", until: null },
    { model: "a", since: "2026-01-01T00:00:00Z", until: "2026-01-01T00:30:00Z" },
  ];
  const { rows, fromMs } = spansOf(episodes, nowMs, 3_600_000);
  assert.equal(fromMs, Date.parse("2026-01-01T00:00:00Z"));
  assert.deepEqual(rows.map(([name, spans]) => [name, spans[0].x, spans[0].width]), [["a", 0, 0.25], ["b", 0.5, 0.5]]);
});

test("events are read from any pieces, and an id counts once its block is whole", () => {
  const text = 'retry: 2000\n\n: note\r\nid: 7\r\nevent: task\r\ndata: {"a":\r\ndata: 1}\r\n\r\nid: 8\ndata: lost';
  for (const size of [1, 2, 3, 7, text.length]) {
    const parser = new EventParser();
    const found = [];
    for (let from = 0; from < text.length; from += size) found.push(...parser.read(text.slice(from, from + size)));
    assert.deepEqual(found, [{ event: "task", data: '{"a":\n1}' }], `in pieces of ${size}`);
    assert.equal(parser.lastId, "7");
  }
});
