// A whole job with the types that openapi-typescript generates: submit, wait, download, and errors.
//
// `node session.js URL KEY`, compiled beside warmlane.d.ts. It prints a line of JSON for each step.
import createClient from "openapi-fetch";
import type { components, paths } from "./warmlane.js";

declare const process: { argv: string[] };
type Task = components["schemas"]["TaskView"];

const [url, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function say(step: string, seen: object): void {
  console.log(JSON.stringify({ step, ...seen }));
}

function present<T>(value: T | null | undefined): T {
  if (value === null || value === undefined) throw new Error("nothing came");
  return value;
}

const submitted = await client.POST("/generate", {
  body: { model: "anisora", prompt: "a fox in the snow" },
  params: { header: { Prefer: "respond-async", "Idempotency-Key": "typescript-session" } },
});
const task: Task = present(submitted.data);
const id = task.id;
say("submitted", { status: submitted.response.status, id, location: submitted.response.headers.get("location") });

const waited = await client.GET("/tasks/{task_id}", { params: { path: { task_id: id }, query: { wait: 60 } } });
const ended: Task = present(waited.data);
say("ended", { status: ended.status, frames: present(ended.video).frames });

const video = await client.GET("/tasks/{task_id}/video", {
  params: { path: { task_id: id } },
  parseAs: "arrayBuffer",
});
const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", present(video.data)));
say("downloaded", { sha256: [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") });

const listed = await client.GET("/tasks", { params: { query: { limit: 10 } } });
say("listed", { ids: present(listed.data).tasks.map((each) => each.id) });

const refused = await client.POST("/generate", { body: { model: "anisora", prompt: " ", width: 7 } });
const wrong = present(refused.error);
say("refused", { code: wrong.code, pointers: present(wrong.errors).map((each) => each.pointer) });

const unknown = await client.GET("/tasks/{task_id}", {
  params: { path: { task_id: "00000000-0000-0000-0000-000000000000" } },
});
say("unknown", { code: present(unknown.error).code });

const stranger = await client.DELETE("/tasks/{task_id}", {
  params: { path: { task_id: id } },
  headers: { Authorization: "Bearer wl_no_key" },
});
say("stranger", { code: present(stranger.error).code });
