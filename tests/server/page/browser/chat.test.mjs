// The chat: what a model writes is text whatever it is, and conversations can be changed, kept and taken away.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { ask, chunks, fake, launch, limit, open } from "./open.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

const ATTACKS = [
  "<script>globalThis.hit = 1</script>",
  "<img src=x onerror='globalThis.hit = 1'>",
  "<svg onload='globalThis.hit = 1'><use href='data:image/svg+xml,x'/></svg>",
  "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
  "<math><mtext><style><img src=x onerror=globalThis.hit=1></style></mtext></math>",
  "[a](javascript:globalThis.hit=1)",
  "[a](JaVaScRiPt&colon;globalThis.hit=1)",
  "[a](data:text/html,<script>globalThis.hit=1</script>)",
  "![leak](https://example.com/leak?words)",
  "![x](x\"onerror=\"globalThis.hit=1)",
  "<a href=x onclick=globalThis.hit=1 style=position:fixed>b</a>",
  "<style>* { display: none }</style>",
  "<form action=https://example.com><input name=q><button>go</button></form>",
  "<base href=https://example.com/><link rel=stylesheet href=https://example.com/x.css>",
  "<meta http-equiv=refresh content='0;url=https://example.com'>",
  "```html\n<script>globalThis.hit = 1</script>\n```",
  "`<img src=x onerror=globalThis.hit=1>`",
  "| a | b |\n|---|---|\n| <img src=x onerror=globalThis.hit=1> | [c](vbscript:x) |",
  "<div id=page name=DOMPurify>clobber</div>",
  "<https://example.com/\"onmouseover=globalThis.hit=1>",
];

test("attacks stay text", async () => {
  const { page, context, faults } = await open(browser);
  await fake(page, [chunks(ATTACKS.map((one) => ({ content: `${one}\n\n` })))]);
  await ask(page, "attack");
  await page.getByText("clobber").waitFor();
  await page.mouse.move(300, 300);
  const found = await page.evaluate(() => {
    const place = document.querySelector(".message.assistant .markdown");
    const all = [...place.querySelectorAll("*")];
    const own = (one) => one.closest("figure.code > figcaption");
    return {
      hit: globalThis.hit,
      tags: [...new Set(all.map((one) => one.localName))],
      handlers: all.flatMap((one) => [...one.attributes]).filter((one) => one.name.startsWith("on")).map((one) => one.name),
      styles: all.filter((one) => one.hasAttribute("style") && !own(one)).length,
      links: [...place.querySelectorAll("a[href]")].map((one) => new URL(one.href).protocol),
      rels: [...place.querySelectorAll("a[href]")].filter((one) => one.rel !== "noopener noreferrer nofollow").length,
      text: place.innerText,
    };
  });
  assert.equal(found.hit, undefined);
  for (const tag of ["script", "img", "svg", "iframe", "math", "style", "form", "input", "base", "link", "meta"]) {
    assert.ok(!found.tags.includes(tag), tag);
  }
  assert.deepEqual([found.handlers, found.styles, found.rels], [[], 0, 0]);
  assert.ok(found.links.every((one) => ["https:", "http:", "mailto:"].includes(one)), String(found.links));
  assert.match(found.text, /\[image: leak\] https:\/\/example\.com/);
  assert.match(found.text, /<script>globalThis\.hit = 1<\/script>/);
  assert.deepEqual(faults, []);
  await context.close();
});

test("Markdown that is none is shown, split anywhere", async () => {
  const { page, context, faults } = await open(browser);
  const text = "# Title\n\nA *word*, `code` and [a link](https://example.com).\n\n- one\n- two\n\n```python\nprint(1 < 2)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n";
  await fake(page, [chunks([...text].map((one) => ({ content: one })))]);
  await ask(page, "show");
  const place = page.locator(".message.assistant .markdown");
  assert.equal(await place.locator("h1").innerText(), "Title");
  assert.equal(await place.locator("li").count(), 2);
  assert.equal(await place.locator("td").count(), 2);
  assert.equal(await place.locator("figure.code code").innerText(), "print(1 < 2)");
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.getByRole("button", { name: "copy python" }).click();
  await page.getByText("copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "print(1 < 2)");
  assert.deepEqual(faults, []);
  await context.close();
});

test("reasoning is folded, calls are shown and answered", async () => {
  const { page, context, faults } = await open(browser);
  const asked = await fake(page, [
    chunks([
      { reasoning_content: "first ", reasoning: "first " }, { reasoning_content: "think", reasoning: "think" },
      { tool_calls: [{ index: 0, id: "c1", type: "function", function: { name: "weather", arguments: "" } }] },
      { tool_calls: [{ index: 0, function: { arguments: '{"city":' } }] }, { tool_calls: [{ index: 0, function: { arguments: '"Bern"}' } }] },
    ]),
    chunks([{ content: "It rains." }]),
  ]);
  await page.getByRole("button", { name: "settings" }).click();
  await page.getByLabel(/tools, JSON/).fill('[{"type":"function","function":{"name":"weather"}}]');
  await page.getByLabel("system text").fill("Be brief.");
  await page.getByLabel("temperature").fill("0.3");
  await ask(page, "Weather?");
  assert.equal(await page.getByText("first think").isVisible(), false);
  await page.getByText("reasoning", { exact: false }).locator("visible=true").first().waitFor();
  await page.locator(".reasoning summary").click();
  await page.getByText("first think").waitFor();
  assert.equal(await page.locator(".call code").nth(1).innerText(), '{\n  "city": "Bern"\n}');
  await page.getByLabel("its result").fill("rain");
  await page.getByRole("button", { name: "give it to the model" }).click();
  await page.getByText("It rains.").waitFor();
  const [first, second] = asked;
  assert.equal(first.messages[0].content, "Be brief.");
  assert.equal(first.temperature, 0.3);
  assert.equal(first.tools[0].function.name, "weather");
  assert.deepEqual(second.messages.slice(2), [
    { role: "assistant", content: "", reasoning_content: "first think", tool_calls: [{ id: "c1", type: "function", function: { name: "weather", arguments: '{"city":"Bern"}' } }] },
    { role: "tool", content: "rain", tool_call_id: "c1" },
  ]);
  assert.deepEqual(faults, []);
  await context.close();
});

test("edit, regenerate, export, and a conversation that is still there", async () => {
  const { page, context, faults } = await open(browser);
  const asked = await fake(page, ["one", "two", "three", "four"].map((one) => chunks([{ content: one }])));
  await ask(page, "first");
  await page.getByRole("button", { name: "regenerate" }).click();
  await page.getByText("two", { exact: true }).waitFor();
  await ask(page, "second");
  await page.getByRole("button", { name: "edit" }).first().click();
  await page.getByLabel("your message").first().fill("other");
  await page.getByRole("button", { name: "send again" }).click();
  await page.getByText("four", { exact: true }).waitFor();
  assert.deepEqual(asked.map((one) => one.messages.map((message) => message.content)), [["first"], ["first"], ["first", "two", "second"], ["other"]]);
  await page.locator(".composer textarea").waitFor();
  await page.reload();
  await page.getByText("four", { exact: true }).waitFor();
  await page.locator(".menu summary").click();
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "export Markdown" }).click()]);
  assert.equal(readFileSync(await file.path(), "utf8"), "# first\n\n## user\n\nother\n\n## assistant\n\nfour\n");
  await page.getByRole("button", { name: "delete" }).click();
  await page.getByText("Ask something.").waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("a request is cancelled in the queue, and the chat says so", async () => {
  const { page, context, faults } = await open(browser);
  await page.locator(".composer textarea").fill("In the beginning");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: /^cancel request/ }).click();
  await page.getByRole("alert").filter({ hasText: "cancelled at the server" }).waitFor();
  await page.locator(".queue .ended", { hasText: "cancelled" }).first().waitFor();
  assert.deepEqual(faults, []);
  await context.close();
});

test("an error of the server is shown where the answer would be", async () => {
  const { page, context } = await open(browser);
  await limit(page, 4);
  await page.locator(".composer textarea").fill("word ".repeat(3000));
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "maximum context length" }).waitFor();
  await context.close();
});

test("a server that goes away is told in words, and what there is stays", async () => {
  const { page, context } = await open(browser);
  const bodies = ['data: {"choices":[{"index":0,"delta":{"content":"Half an answer"},"finish_reason":null}]}\n\n', null];
  let asked = 0;
  await page.route("**/v1/chat/completions", (route) => {
    const body = bodies[Math.min(asked++, 1)];
    return body === null ? route.abort("connectionrefused") : route.fulfill({ contentType: "text/event-stream", body });
  });
  for (const words of ["was lost before the answer's end", "no connection to the server"]) {
    await page.locator(".composer textarea").fill("Hello");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: words }).waitFor();
  }
  await page.getByText("Half an answer").waitFor();
  await context.close();
});

test("an answer that is asked anew while it comes is not kept", async () => {
  const { page, context, faults } = await open(browser);
  await page.locator(".composer textarea").fill("In the beginning");
  await page.keyboard.press("Enter");
  await page.locator(".message.assistant .markdown").waitFor();
  let isHeld = false;
  await page.route("**/v1/chat/completions", () => {
    isHeld = true; // never answered: what is kept now is what the first answer left
  });
  await page.getByRole("button", { name: "edit" }).first().click();
  await page.getByLabel("your message").first().fill("other");
  await page.getByRole("button", { name: "send again" }).click();
  await page.getByText("waiting for the first token").waitFor();
  await page.waitForTimeout(300);
  assert.ok(isHeld);
  await page.reload();
  await page.getByText("other", { exact: true }).first().waitFor();
  assert.equal(await page.locator(".message.assistant").count(), 0);
  assert.deepEqual(faults, []);
  await context.close();
});
