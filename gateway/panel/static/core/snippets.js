/** A request of the form as text to paste elsewhere. Pure. A key is named by a variable and never written out. */

const VARIABLE = "WARMLANE_API_KEY";

/** @type {Record<string, (request: {base: string, body: object, image: {field: string, name: string, type: string} | null, hasKey: boolean}) => string>} */
export const SNIPPETS = { cURL: curl, Python: python, JavaScript: javascript, "warmlane submit": command };

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl({ base, body, image, hasKey }) {
  const header = hasKey ? ` \\\n  -H "Authorization: Bearer $${VARIABLE}"` : "";
  const head = `curl ${quoted(`${base}generate`)} \\\n  -H 'Content-Type: application/json'${header} \\\n`;
  if (image === null) return `${head}  -d ${quoted(JSON.stringify(body))}`;
  // the image comes from its file, between the two halves of the JSON
  const [before, after] = JSON.stringify({ ...body, [image.field]: "\0" }).split("\\u0000");
  const uri = `data:${image.type};base64,`;
  return `{ printf %s ${quoted(before + uri)}; base64 -w0 ${quoted(image.name)}; printf %s ${quoted(after)}; } |\n${head}  -d @-`;
}

function python({ base, body, image, hasKey }) {
  const lines = ["import httpx"];
  if (image !== null) lines.unshift("import base64");
  if (hasKey) lines.unshift("import os");
  lines.push("", `body = ${pythonDict(body, image)}`);
  if (image !== null) {
    lines.push(`image = base64.b64encode(open(${JSON.stringify(image.name)}, "rb").read()).decode()`);
    lines.push(`body[${JSON.stringify(image.field)}] = "data:${image.type};base64," + image`);
  }
  const headers = hasKey ? `headers={"Authorization": "Bearer " + os.environ["${VARIABLE}"]}, ` : "";
  lines.push(
    `with httpx.Client(base_url=${JSON.stringify(base)}, ${headers}timeout=90) as http:`,
    `    task = http.post("generate", json=body, headers={"Prefer": "respond-async"}).raise_for_status().json()`,
    `    while task["status"] in ("pending", "processing"):`,
    `        task = http.get(f"tasks/{task['id']}", params={"wait": 60}).raise_for_status().json()`,
    `    print(task["status"], task["error"])`,
    `    if task["status"] == "done":`,
    `        open("video.mp4", "wb").write(http.get(f"tasks/{task['id']}/video").raise_for_status().content)`,
  );
  return lines.join("\n");
}

function pythonDict(body, image) {
  const entries = Object.entries(body).filter(([name]) => name !== image?.field);
  // what JSON and Python write alike: texts and numbers
  return `{${entries.map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(", ")}}`;
}

function javascript({ base, body, image, hasKey }) {
  const plain = Object.fromEntries(Object.entries(body).filter(([name]) => name !== image?.field));
  const lines = [];
  if (image !== null) lines.push(`import { readFile } from "node:fs/promises";`);
  lines.push(`const base = ${JSON.stringify(base)};`);
  const key = hasKey ? `, Authorization: \`Bearer \${process.env.${VARIABLE}}\`` : "";
  lines.push(`const headers = { "Content-Type": "application/json", Prefer: "respond-async"${key} };`);
  lines.push(`const body = ${JSON.stringify(plain)};`);
  if (image !== null) {
    lines.push(`const image = await readFile(${JSON.stringify(image.name)}, "base64");`);
    lines.push(`body[${JSON.stringify(image.field)}] = \`data:${image.type};base64,\${image}\`;`);
  }
  lines.push(
    `const answer = await fetch(base + "generate", { method: "POST", headers, body: JSON.stringify(body) });`,
    `if (!answer.ok) throw new Error(await answer.text());`,
    `let task = await answer.json();`,
    `while (["pending", "processing"].includes(task.status)) {`,
    `  task = await (await fetch(\`\${base}tasks/\${task.id}?wait=60\`, { headers })).json();`,
    `}`,
    `console.log(task.status, task.error ?? \`\${base}tasks/\${task.id}/video\`);`,
  );
  return lines.join("\n");
}

function command({ base, body, image }) {
  const { model, prompt = "", ...options } = body;
  const words = ["warmlane submit", quoted(model), quoted(prompt)];
  for (const [name, value] of Object.entries(options)) {
    const given = name === image?.field ? image.name : String(value);
    words.push(`--${name.replaceAll("_", "-")} ${/^[\w.-]+$/.test(given) ? given : quoted(given)}`);
  }
  words.push(`--url ${quoted(base.replace(/\/$/, ""))}`);
  return words.join(" ");
}
