// What the engine does, as /live tells it. While the page is hidden it is not asked for.
import { batch, signal } from "./html.js";
import { call } from "./api.js";
import { events } from "./sse.js";

export const KEPT = 600; // passes
const SPARK_S = 60;

/** {state: "connecting" | "live" | "loading" | "lost" | "hidden", text} */
export const connection = signal({ state: "connecting", text: "connecting" });
export const hello = signal(null);
export const tick = signal(null);
/** Grows when `passes` has changed: arrays of numbers are not signals. */
export const version = signal(0);

/** The last passes, oldest first: {index, phase, tokens, sequences, context, measured, predicted, bytes, heat}. */
export const passes = [];
export let columns = [];
/** Of the last minute, one value a second: {decode: [...], ...}. */
export const sparks = {};
let lastSpark = 0;

function takeRows(data, layers) {
  columns = data.columns;
  const heat = Uint8Array.from(atob(data.heat), (one) => one.charCodeAt(0));
  data.passes.forEach((row, i) => {
    const [index, phase, tokens, sequences, context, measured, predicted, ...bytes] = row;
    if (passes.length && index <= passes[passes.length - 1].index) return;
    const share = heat.subarray(i * layers, (i + 1) * layers);
    passes.push({ index, phase, tokens, sequences, context, measured, predicted, bytes, heat: share });
  });
  if (passes.length > KEPT) passes.splice(0, passes.length - KEPT);
}

function takeSparks(data) {
  if (data.t - lastSpark < 0.95) return;
  lastSpark = data.t;
  const { kv } = data;
  const found = {
    decode: data.decode_tok_s, prefill: data.prefill_tok_s, ttft: data.ttft_ms, running: data.running,
    waiting: data.waiting, kv: kv.pages ? kv.used / kv.pages : 0, hits: data.prompt ? data.reused / data.prompt : null,
    bytes: bytesPerToken(32),
  };
  for (const [name, value] of Object.entries(found)) {
    const line = (sparks[name] ??= []);
    line.push(value);
    if (line.length > SPARK_S) line.shift();
  }
}

/** Mean bytes of a token over the last decode passes; null before there are any. */
export function bytesPerToken(count) {
  const chosen = lastOf("decode", count);
  const tokens = chosen.reduce((sum, one) => sum + one.tokens, 0);
  const read = chosen.reduce((sum, one) => sum + one.bytes.reduce((a, b) => a + b, 0), 0);
  return tokens ? read / tokens : null;
}

/** The last passes of a phase, oldest first. */
export function lastOf(phase, count = KEPT) {
  const number = hello.value?.phases.indexOf(phase) ?? -1;
  const found = phase === "all" ? passes : passes.filter((one) => one.phase === number);
  return found.slice(-count);
}

function take({ name, data }) {
  batch(() => {
    if (name === "hello") {
      hello.value = data;
    } else if (name === "history") {
      // A server that began anew counts from 0 again.
      if (passes.length && (data.passes.at(-1)?.[0] ?? -1) < passes.at(-1).index) passes.length = 0;
      takeRows(data, hello.value.layers);
      version.value += 1;
    } else if (name === "tick") {
      connection.value = { state: "live", text: "live" };
      takeRows(data, hello.value.layers);
      takeSparks(data);
      tick.value = data;
      version.value += 1;
    }
  });
}

let stop = null;

async function watch() {
  stop = new AbortController();
  const response = await call("/live", { signal: stop.signal });
  for await (const one of events(response)) take(one);
}

function describe(error) {
  if (error.status === 503 && error.details.code === "loading") {
    const { loaded_bytes: done, total_bytes: all, hosts_joined: here, hosts_wanted: hosts } = error.details;
    if (hosts) return { state: "loading", text: `waiting for hosts, ${here} of ${hosts} joined` };
    return { state: "loading", text: all ? `loading, ${Math.floor((100 * done) / all)} %` : "loading" };
  }
  if (error.status) return { state: "lost", text: error.message };
  return { state: "lost", text: "no connection to the server" };
}

/** Watches for as long as the page is there. */
export async function start() {
  document.addEventListener("visibilitychange", () => document.hidden && stop?.abort());
  for (;;) {
    if (document.hidden) {
      connection.value = { state: "hidden", text: "paused" };
      await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
      continue;
    }
    try {
      await watch();
      connection.value = { state: "lost", text: "the server closed the connection" };
    } catch (error) {
      if (error.name !== "AbortError") connection.value = describe(error);
    }
    await new Promise((go) => setTimeout(go, connection.value.state === "loading" ? 500 : 2000));
  }
}
