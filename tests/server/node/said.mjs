// What the tests of both clients ask and expect; the model's words come from test_node.py, by the end of the prompt.
import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";

export const { BASE } = process.env;
export const SHORT = "Say hello.";
export const THINK = "Think, then say hello.";
export const ASK = "What is the weather in Oslo?";
export const LONG = "Talk for a long time.";
export const PERSON = "Name a person.";
export const SCHEMA = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};

export function isPerson(found) {
  assert.deepEqual(Object.keys(found).sort(), ["age", "name"]);
  assert.ok(found.name.length <= 20 && Number.isInteger(found.age) && found.age >= 0 && found.age <= 99, JSON.stringify(found));
}

/** Waits until the server has no request left; it must not take long. */
export async function isFree() {
  for (let i = 0; i < 100; i++) {
    if ((await (await fetch(`${BASE}/slots`)).json()).length === 0) return;
    await setTimeout(20);
  }
  assert.fail("a request that was aborted still runs");
}
