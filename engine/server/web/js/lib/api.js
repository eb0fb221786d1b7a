// Calls of this server. A key that is missing is asked for once, kept for this tab, and sent with every call.
import { signal } from "./html.js";

const KEPT = "headrace-key";

/** Whether a key is asked for, and what was wrong with the last one. */
export const keyWanted = signal(null);
let waiting = [];

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.details = body?.error ?? {};
  }
}

export function giveKey(key) {
  sessionStorage.setItem(KEPT, key);
  keyWanted.value = null;
  const waiters = waiting;
  waiting = [];
  for (const go of waiters) go();
}

function askForKey() {
  const hadOne = sessionStorage.getItem(KEPT) !== null;
  keyWanted.value = hadOne ? "That key is not accepted." : "This server needs a key.";
  return new Promise((go) => waiting.push(go));
}

/** The response of a call that worked; throws ApiError. body: sent as JSON. */
export async function call(path, { body, signal: stop } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEPT);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const request = { headers, signal: stop, cache: "no-store" };
    if (body !== undefined) {
      request.method = "POST";
      headers["content-type"] = "application/json";
      request.body = JSON.stringify(body);
    }
    const response = await fetch(path, request);
    if (response.ok) return response;
    if (response.status !== 401) throw new ApiError(response.status, await response.json().catch(() => null));
    if (sessionStorage.getItem(KEPT) === key) await askForKey();
    if (stop?.aborted) throw new DOMException("stopped", "AbortError");
  }
}

export async function getJson(path) {
  return (await call(path)).json();
}
