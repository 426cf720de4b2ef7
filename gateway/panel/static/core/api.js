/** Requests to the gateway. Every path is relative to the page, so that a proxy may put a prefix before it. */
import { keyWasRefused, session } from "./session.js";

/** The gateway answered with an error. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {{code?: string, title?: string, detail?: string, errors?: object[]}} body an RFC 9457 document
   * @param {number | null} retryAfterS
   */
  constructor(status, body, retryAfterS) {
    super(body.detail || body.title || String(status));
    this.status = status;
    this.code = body.code ?? "";
    this.title = body.title ?? "";
    this.detail = body.detail ?? "";
    this.errors = body.errors ?? [];
    this.limit = body.limit ?? null;
    this.retryAfterS = retryAfterS;
  }
}

/** Nothing answered, or a proxy in place of the gateway. */
export class Unreachable extends Error {}

// `Date` has whole seconds, and an answer takes its time: less than this is no other clock.
const SKEW_MS = 3000;
let aheadMs = 0;

/** The gateway's clock, in ms since 1970, as far as its last answer tells. */
export function serverNow() {
  return Date.now() + aheadMs;
}

/**
 * The answer to a request, which succeeded.
 * @param {string} path
 * @param {{method?: string, body?: unknown, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 * @throws {Problem | Unreachable}
 */
export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const { key } = session.get();
  const sent = { ...headers };
  if (key !== null) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable(error.message);
  }
  if (answer.status === 502 || answer.status === 504) throw new Unreachable(String(answer.status));
  const date = Date.parse(answer.headers.get("Date") ?? "");
  if (!Number.isNaN(date) && Math.abs(date - serverNow()) > SKEW_MS) aheadMs = date - Date.now();
  if (answer.ok) return answer;
  if (answer.status === 401) keyWasRefused(key);
  throw await problemOf(answer);
}

/** The JSON of an answer that succeeded. */
export async function json(path, options) {
  const answer = await request(path, options);
  return answer.json();
}

async function problemOf(answer) {
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // no problem document: the status is all there is
  }
  const afterS = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  return new Problem(answer.status, body, Number.isNaN(afterS) ? null : afterS);
}

/** A new Idempotency-Key. `crypto.randomUUID` is missing where a page comes over plain HTTP from another machine. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
