// OpenAI's client for Node.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { ASK, BASE, LONG, PERSON, SCHEMA, SHORT, THINK, isFree, isPerson } from "./said.mjs";

const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: "none", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const TOOLS = [{
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { place: { type: "string" }, days: { type: "integer" } }, required: ["place"] },
  },
}];

test("a chat", async () => {
  const made = await client.chat.completions.create({ model: "m", messages: user(SHORT) });
  assert.equal(made.choices[0].message.content, "Hello!");
  assert.equal(made.choices[0].finish_reason, "stop");
  assert.equal(made.usage.total_tokens, made.usage.prompt_tokens + made.usage.completion_tokens);
});

test("a stream", async () => {
  const stream = await client.chat.completions.create({
    model: "m", messages: user(THINK), stream: true, stream_options: { include_usage: true },
  });
  let text = "", thought = "", usage;
  for await (const { choices: [choice], usage: counts } of stream) {
    text += choice?.delta.content ?? "";
    thought += choice?.delta.reasoning_content ?? "";
    usage = counts ?? usage;
  }
  assert.deepEqual([text, thought], ["Hello!", "A greeting, then."]);
  assert.ok(usage.completion_tokens_details.reasoning_tokens > 0);
});

test("a stream that the client puts together", async () => {
  const stream = client.chat.completions.stream({ model: "m", messages: user(ASK), tools: TOOLS });
  const { choices: [{ message, finish_reason }] } = await stream.finalChatCompletion();
  assert.equal(finish_reason, "tool_calls");
  assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { place: "Oslo", days: 2 });
});

test("a tool, round and back", async () => {
  const asked = [];
  const weather = {
    type: "function",
    function: {
      ...TOOLS[0].function, parse: JSON.parse,
      function: (given) => {
        asked.push(given);
        return "rain";
      },
    },
  };
  const runner = client.chat.completions.runTools({ model: "m", messages: user(ASK), tools: [weather] });
  assert.equal(await runner.finalContent(), "It rains in Oslo.");
  assert.deepEqual(asked, [{ place: "Oslo", days: 2 }]);
});

test("structured output", async () => {
  const made = await client.chat.completions.parse({
    model: "m", messages: user(PERSON), max_tokens: 300,
    response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema: SCHEMA } },
  });
  isPerson(JSON.parse(made.choices[0].message.content));
});

test("a response, whole and as a stream", async () => {
  const asked = { model: "m", input: ASK, tools: [{ type: "function", ...TOOLS[0].function }] };
  const whole = await client.responses.create(asked);
  assert.deepEqual(whole.output.map((one) => one.type), ["function_call"]);
  const stream = client.responses.stream(asked);
  const last = await stream.finalResponse();
  assert.equal(last.status, "completed");
  assert.equal(last.output[0].arguments, whole.output[0].arguments);
});

test("errors", async () => {
  const long = client.chat.completions.create({ model: "m", messages: user("word ".repeat(3000)) });
  await assert.rejects(long, (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded");
  const warm = client.chat.completions.create({ model: "m", messages: user(SHORT), temperature: -1, stream: true });
  await assert.rejects(warm, (error) => error.status === 400 && error.param === "temperature");
  const missing = client.embeddings.create({ model: "m", input: "x" });
  await assert.rejects(missing, (error) => error instanceof OpenAI.NotFoundError && /embeddings/.test(error.message));
});

test("an answer that is aborted", async () => {
  const stream = await client.chat.completions.create({ model: "m", messages: user(LONG), stream: true });
  let pieces = 0;
  for await (const _ of stream) if (++pieces === 5) break;
  await isFree();
  const leave = new AbortController();
  const whole = client.chat.completions.create({ model: "m", messages: user(LONG) }, { signal: leave.signal });
  setTimeout(() => leave.abort(), 100);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await isFree();
});
