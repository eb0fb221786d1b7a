// The AI SDK's client of compatible servers, which opencode and others are built on.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { ASK, BASE, LONG, PERSON, SCHEMA, SHORT, THINK, isFree, isPerson } from "./said.mjs";

const provider = createOpenAICompatible({
  name: "headrace", baseURL: `${BASE}/v1`, includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider("m");
const common = { model, maxRetries: 0 };

function weather(asked) {
  return tool({
    inputSchema: jsonSchema({
      type: "object", properties: { place: { type: "string" }, days: { type: "integer" } }, required: ["place"],
    }),
    execute: async (given) => {
      asked.push(given);
      return "rain";
    },
  });
}

test("a chat", async () => {
  const made = await generateText({ ...common, prompt: SHORT });
  assert.equal(made.text, "Hello!");
  assert.equal(made.finishReason, "stop");
  assert.ok(made.usage.inputTokens > 0 && made.usage.outputTokens > 0);
});

test("a stream, with reasoning once", async () => {
  const stream = streamText({ ...common, prompt: THINK });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, "Hello!");
  assert.equal(await stream.reasoningText, "A greeting, then.");
  assert.ok((await stream.usage).inputTokens > 0);
});

for (const [name, run] of [
  ["whole", (options) => generateText(options)],
  ["as a stream", async (options) => {
    const stream = streamText(options);
    await stream.consumeStream();
    return { text: await stream.text, steps: await stream.steps };
  }],
]) {
  test(`a tool, round and back, ${name}`, async () => {
    const asked = [];
    const made = await run({ ...common, prompt: ASK, tools: { weather: weather(asked) }, stopWhen: stepCountIs(3) });
    assert.deepEqual(asked, [{ place: "Oslo", days: 2 }]);
    assert.equal(made.text, "It rains in Oslo.");
    assert.deepEqual(made.steps.map((one) => one.finishReason), ["tool-calls", "stop"]);
  });
}

test("structured output", async () => {
  const made = await generateText({
    ...common, prompt: PERSON, maxOutputTokens: 300, output: Output.object({ schema: jsonSchema(SCHEMA) }),
  });
  isPerson(made.output);
});

test("errors", async () => {
  const long = generateText({ ...common, prompt: "word ".repeat(3000) });
  await assert.rejects(long, (error) =>
    APICallError.isInstance(error) && error.statusCode === 400 && !error.isRetryable && /maximum context length/.test(error.message));
  const seen = [];
  const stream = streamText({ ...common, prompt: "word ".repeat(3000), onError: ({ error }) => seen.push(error) });
  await stream.consumeStream();
  assert.equal(seen[0]?.statusCode, 400);
});

test("an answer that is aborted", async () => {
  const leave = new AbortController();
  const stream = streamText({ ...common, prompt: LONG, abortSignal: leave.signal });
  let pieces = 0;
  for await (const _ of stream.textStream) if (++pieces === 5) leave.abort();
  await isFree();
});
