// Conversations: which one is shown, what is said in it, and the answer that is being made.
import { batch, signal } from "../lib/html.js";
import { hello } from "../lib/live.js";
import * as store from "../lib/store.js";
import { answer } from "./answer.js";

export const conversations = signal([]);
export const current = signal(fresh());
/** The answer that is being made, as a message; null when none is. */
export const draft = signal(null);
/** One sentence for screen readers. */
export const announced = signal("");

let stopping = null;

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", at: Date.now(), system: "", settings: {}, messages: [] };
}

export async function start() {
  const found = await store.all();
  conversations.value = found;
  if (found.length) current.value = found[0];
}

/** Changes the conversation that is shown, and keeps it. */
export function change(fields) {
  const next = { ...current.value, ...fields, at: Date.now() };
  batch(() => {
    current.value = next;
    if (next.messages.length || next.system || Object.keys(next.settings).length) {
      conversations.value = [next, ...conversations.value.filter((one) => one.id !== next.id)];
      store.keep(next).catch(() => {});
    }
  });
}

export function begin() {
  stop();
  const { system, settings } = current.value;
  current.value = { ...fresh(), system, settings };
}

export function show(id) {
  stop();
  current.value = conversations.value.find((one) => one.id === id) ?? current.value;
}

export async function remove(id) {
  stop();
  conversations.value = conversations.value.filter((one) => one.id !== id);
  await store.forget(id);
  current.value = conversations.value[0] ?? fresh();
}

export const titleOf = (one) => one.title || "new conversation";

export function send(text) {
  const { messages, title } = current.value;
  change({ messages: [...messages, { role: "user", content: text }], title: title || text.trim().split("\n")[0].slice(0, 60) });
  return run();
}

/** Says something else at a place, and forgets what came after it. */
export function edit(at, text) {
  change({ messages: [...current.value.messages.slice(0, at), { role: "user", content: text }] });
  return run();
}

/** Makes the answer at a place anew. */
export function regenerate(at) {
  change({ messages: current.value.messages.slice(0, at) });
  return run();
}

/** Gives the result of a call; when all of an answer's calls have one, the model goes on. */
export function giveResult(call, text) {
  const { messages } = current.value;
  const next = [...messages.filter((one) => one.tool_call_id !== call.id), { role: "tool", tool_call_id: call.id, content: text }];
  change({ messages: next });
  const asked = next.findLast((one) => one.role === "assistant")?.calls ?? [];
  return asked.every((one) => next.some((other) => other.tool_call_id === one.id)) ? run() : undefined;
}

export function stop() {
  stopping?.abort();
}

async function run() {
  stop();
  const mine = (stopping = new AbortController());
  const { id } = current.value;
  draft.value = { role: "assistant", content: "", reasoning: "", calls: [] };
  announced.value = "answering";
  const made = await answer(current.value, hello.value, mine.signal, (message) => {
    if (stopping === mine) draft.value = message;
  });
  if (current.value.id !== id || stopping !== mine) {
    if (stopping === mine) draft.value = null;
    if (current.value.id !== id) keepElsewhere(id, made); // else it was asked anew, and nobody waits for this one
    return;
  }
  batch(() => {
    stopping = null;
    draft.value = null;
    change({ messages: [...current.value.messages, made] });
    announced.value = made.error ? `error: ${made.error}` : `the answer is complete, ${made.content.length} characters`;
  });
}

/** An answer to a conversation that was left meanwhile. */
function keepElsewhere(id, made) {
  const left = conversations.value.find((one) => one.id === id);
  if (!left || !(made.content || made.reasoning) || left.messages.at(-1)?.role === "assistant") return;
  const next = { ...left, messages: [...left.messages, made] };
  conversations.value = conversations.value.map((one) => (one.id === id ? next : one));
  store.keep(next).catch(() => {});
}
