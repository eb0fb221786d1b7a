// One answer of the model, streamed: from a conversation to a request, from its events to a message.
import { call } from "../lib/api.js";
import { events } from "../lib/sse.js";

const SHOWN_MS = 60; // how often an answer that grows is shown: its Markdown is read anew each time
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];

/** What was chosen in the drawer; what is empty is left to the model's own defaults. */
function chosen(settings) {
  const found = {};
  for (const name of NUMBERS) {
    const value = Number.parseFloat(settings[name]);
    if (Number.isFinite(value)) found[name] = value;
  }
  if (settings.stop) found.stop = settings.stop.split("\n").filter(Boolean);
  if (settings.reasoning_effort) found.reasoning_effort = settings.reasoning_effort;
  if (settings.tools?.trim()) found.tools = JSON.parse(settings.tools);
  return found;
}

function said(message) {
  const { role, content, reasoning, calls, tool_call_id: answers } = message;
  if (role === "tool") return { role, content, tool_call_id: answers };
  const found = { role, content };
  if (reasoning) found.reasoning_content = reasoning;
  if (calls?.length) {
    found.tool_calls = calls.map((one) => ({ id: one.id, type: "function", function: { name: one.name, arguments: one.arguments } }));
  }
  return found;
}

/** The body of a chat; of a model without a template its text is gone on with. */
export function requestOf(conversation, facts) {
  const { system, settings, messages } = conversation;
  const common = { model: facts?.model, stream: true, stream_options: { include_usage: true }, headrace: true };
  const kept = messages.filter((one) => !one.error || one.content);
  if (facts && !facts.has_template) {
    const { tools, reasoning_effort: _, ...sampling } = chosen(settings);
    return ["/v1/completions", { ...common, ...sampling, prompt: [system, ...kept.map((one) => one.content)].filter(Boolean).join("") }];
  }
  const all = [...(system ? [{ role: "system", content: system }] : []), ...kept.map(said)];
  return ["/v1/chat/completions", { ...common, ...chosen(settings), messages: all }];
}

function takeDelta(message, choice) {
  const delta = choice.delta ?? { content: choice.text };
  message.content += delta.content ?? "";
  message.reasoning += delta.reasoning_content ?? "";
  for (const piece of delta.tool_calls ?? []) {
    const one = (message.calls[piece.index] ??= { id: piece.id, name: "", arguments: "" });
    one.name += piece.function?.name ?? "";
    one.arguments += piece.function?.arguments ?? "";
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

function take(message, data) {
  if (data.error) throw new Error(data.error.message);
  if (data.choices?.length) takeDelta(message, data.choices[0]);
  if (data.usage) message.usage = data.usage;
  if (data.timings) message.timings = data.timings;
  if (data.headrace) message.ledger = data.headrace;
}

/** What went wrong, in words: a browser has its own for a server that is not there. begun: what there is of the answer. */
function reason(error, begun) {
  if (error instanceof SyntaxError) return `the tools are no JSON: ${error.message}`;
  if (!(error instanceof TypeError)) return error.message;
  return begun ? "the connection to the server was lost before the answer's end" : "no connection to the server: is it running?";
}

/** The whole message. show(message): called now and then while it grows. Errors are part of it. */
export async function answer(conversation, facts, stop, show) {
  const message = { role: "assistant", content: "", reasoning: "", calls: [] };
  let timer = 0;
  const later = () => {
    timer ||= setTimeout(() => {
      timer = 0;
      show({ ...message, calls: [...message.calls] });
    }, SHOWN_MS);
  };
  try {
    const [path, body] = requestOf(conversation, facts);
    const response = await call(path, { body, signal: stop });
    let isWhole = false;
    for await (const { data } of events(response)) {
      isWhole = data === "[DONE]";
      if (isWhole) break;
      take(message, data);
      later();
    }
    if (!isWhole) throw new TypeError("the stream has no end");
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else message.error = reason(error, message.content || message.reasoning);
  } finally {
    clearTimeout(timer);
  }
  return message;
}
