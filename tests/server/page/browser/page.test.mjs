// The page as a whole: nothing breaks, nothing leaves, everyone can use it.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { AXE, KEY, KEY_URL, PAGE_URL, ask, launch, limit, open } from "./open.mjs";

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

const PANELS = ["Chat", "Now", "River", "Truth", "Queue", "KV cache", "Placement", "Experts by layer", "Hot experts"];

test("a question is answered, and its bytes are those of the ledger", async () => {
  const { page, context, faults } = await open(browser);
  for (const title of PANELS) await page.getByRole("region", { name: title, exact: true }).waitFor();
  await limit(page, 24);
  await ask(page, "In the beginning");
  assert.match(await page.locator(".cost").innerText(), /24 tokens .* MB a token .* ms a token/);
  await page.locator(".queue .ended").first().waitFor();
  const ledger = await (await fetch(`${PAGE_URL}/v1/headrace/ledger?last=1`)).json();
  const [last] = ledger.passes;
  await page.getByRole("button", { name: "River as a table" }).click();
  const row = page.locator("#river tbody tr", { has: page.getByRole("rowheader", { name: String(last.index), exact: true }) });
  const dense = `${Number((last.bytes.cpu_dram.dense / 1e6).toPrecision(3))} MB`;
  assert.ok((await row.innerText()).includes(dense), `${await row.innerText()} has no ${dense}`);
  assert.deepEqual(faults, []);
  await context.close();
});

for (const [name, media] of [
  ["light", { colorScheme: "light" }],
  ["dark", { colorScheme: "dark" }],
  ["forced colours", { colorScheme: "dark", forcedColors: "active" }],
]) {
  test(`axe finds nothing, ${name}`, async () => {
    const { page, context, faults } = await open(browser, media);
    await limit(page, 8);
    await ask(page, "And it came to pass");
    await page.getByRole("button", { name: "settings" }).click();
    await page.locator("#placement table").waitFor();
    await page.locator("#hot .map").waitFor();
    await page.evaluate(AXE);
    const found = await page.evaluate(() => globalThis.axe.run());
    const words = found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => `${node.html} ${node.failureSummary}`).join("\n")}`);
    assert.deepEqual(words, []);
    assert.ok(found.passes.length > 20);
    assert.deepEqual(faults, []);
    await context.close();
  });
}

test("the tab key reaches everything once, and shows where it is", async () => {
  const { page, context, faults } = await open(browser);
  await page.locator("#placement table").waitFor();
  const wanted = await page.evaluate(() => {
    const all = "a[href], button:not(:disabled), select, textarea, input, summary, [tabindex='0']";
    return [...document.querySelectorAll(all)].filter((one) => one.checkVisibility() && !one.closest("dialog")).length;
  });
  const seen = [];
  for (let i = 0; i < wanted; i += 1) {
    await page.keyboard.press("Tab");
    seen.push(await page.evaluate(() => {
      const { activeElement: here } = document;
      here.dataset.seen = String(Number(here.dataset.seen ?? 0) + 1);
      const { outlineStyle, outlineWidth } = getComputedStyle(here);
      return { what: here.outerHTML.slice(0, 80), times: here.dataset.seen, outline: outlineStyle !== "none" && outlineWidth !== "0px" };
    }));
  }
  assert.deepEqual(seen.filter((one) => one.times !== "1" || !one.outline), []);
  assert.deepEqual(faults, []);
  await context.close();
});

test("keys: Enter sends, Escape stops, arrows read the map", async () => {
  const { page, context, faults } = await open(browser);
  await page.locator(".composer textarea").focus();
  await page.keyboard.type("In the beginning");
  await page.keyboard.press("Enter");
  await page.locator(".message.assistant .markdown").waitFor();
  await page.keyboard.press("Escape");
  await page.getByText("stopped", { exact: true }).waitFor();
  await page.locator(".heat").focus();
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("ArrowDown");
  assert.match(await page.locator("#heat-at").innerText(), /^layer 1, pass \d+ \(.*\): about .* of 16 experts/);
  // The queue is asked for now and then: its newest line may still be that of the answer before.
  await page.locator(".queue .ended", { hasText: "cancelled" }).first().waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".queue progress").length === 0);
  assert.deepEqual(faults, []);
  await context.close();
});

test("hot experts: the map, its orders, and its table are what the server counted", async () => {
  const { page, context, faults } = await open(browser);
  await limit(page, 8);
  await ask(page, "In the beginning");
  await page.locator("#hot .map").focus();
  await page.keyboard.press("ArrowDown");
  assert.match(await page.locator("#hot-at").innerText(), /^layer 0, expert 0: [\d,]+ tokens, .* % of the layer's, .* in RAM$/);
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  assert.match(await page.locator("#hot-at").innerText(), /^layer 1, expert 1: /);
  await page.locator("#hot").getByLabel("order of experts").selectOption("heat");
  await page.locator("#hot .map").focus();
  await page.keyboard.press("ArrowLeft");
  assert.match(await page.locator("#hot-at").innerText(), /rank 1, in RAM$/);
  assert.match(await page.locator("#hot .curve").getAttribute("aria-label"), /the hottest 50 % of the experts take \d/);
  const counts = await (await fetch(`${PAGE_URL}/v1/headrace/experts`)).json();
  const numbers = (text) => new Float64Array(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);
  await page.locator("#hot").getByLabel("chosen by tokens of").selectOption("generated");
  await page.getByRole("button", { name: "Hot experts as a table" }).click();
  const sum = numbers(counts.generated).subarray(0, counts.experts).reduce((a, b) => a + b, 0).toLocaleString("en");
  const row = page.locator("#hot tbody tr").first();
  await page.waitForFunction((text) => document.querySelector("#hot tbody tr td")?.textContent === text, sum);
  assert.equal(await row.locator("th").innerText(), "0");
  assert.deepEqual(faults, []);
  await context.close();
});

test("360 pixels are wide enough", async () => {
  const { page, context, faults } = await open(browser, { viewport: { width: 360, height: 740 } });
  await limit(page, 8);
  await ask(page, "In the beginning");
  await page.locator("#placement table").waitFor();
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  for (const title of PANELS) await page.getByRole("region", { name: title, exact: true }).scrollIntoViewIfNeeded();
  assert.deepEqual(faults, []);
  await context.close();
});

test("a key is asked for, kept for the tab, and asked for again when it is wrong", async () => {
  const { page, context, faults } = await open(browser, { url: KEY_URL, goes: false });
  const field = page.getByLabel("key", { exact: true });
  await field.fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByText("That key is not accepted.").waitFor();
  await field.fill(KEY);
  await page.keyboard.press("Enter");
  await page.locator(".state.live").waitFor();
  await page.locator("#placement table").waitFor();
  await page.reload();
  await page.locator(".state.live").waitFor();
  assert.equal(await page.locator("dialog[open]").count(), 0);
  assert.deepEqual(faults, []);
  await context.close();
});

test("ten thousand snapshots leave nothing behind", async () => {
  const hello = (await (await fetch(`${PAGE_URL}/live`)).body.pipeThrough(new TextDecoderStream()).getReader().read()).value;
  const tick = (i) => ({
    t: i, up_s: i, running: 1, waiting: 0, decode_tok_s: 9, prefill_tok_s: 0, ttft_ms: 3, made: i, computed: 9, reused: 1, prompt: 10,
    queue: [], ended_last: [], kv: { pages: 9, used: 2, shared: 1, idle: 3, free: 4, page: 32 }, columns: ["cpu_dram.dense"],
    passes: [[i, 2, 1, 1, 9, 2 + (i % 3), 2, 1e6]], heat: btoa("\0\x10\x20\0\0\0\0"), window: null, sentence: "as predicted",
  });
  const events = (from, to) => Array.from({ length: to - from }, (_, i) => `event: tick\ndata: ${JSON.stringify(tick(from + i))}\n\n`).join("");
  let call = 0;
  const before = (page) => page.route("**/live", (route) => {
    call += 1;
    const [from, to] = call === 1 ? [0, 2000] : [2000 * call, 2000 * call + (call < 7 ? 2000 : 1)];
    route.fulfill({ contentType: "text/event-stream", body: `${hello.split("\n\n")[0]}\n\n${events(from, to)}` });
  });
  const { page, context, faults } = await open(browser, { before, goes: false });
  const session = await context.newCDPSession(page);
  const size = async () => {
    await session.send("HeapProfiler.collectGarbage");
    const { usedSize } = await session.send("Runtime.getHeapUsage");
    return { heap: usedSize, nodes: await page.evaluate(() => document.querySelectorAll("*").length) };
  };
  const reached = (index) => page.waitForFunction((i) => import("/page/js/lib/live.js").then((live) => live.passes.at(-1)?.index >= i), index, { timeout: 60_000 });
  await reached(3999);
  const first = await size();
  await reached(13_999);
  const last = await size();
  assert.equal(await page.evaluate(() => import("/page/js/lib/live.js").then((live) => live.passes.length)), 600);
  assert.ok(last.nodes <= first.nodes + 5, `${first.nodes} elements became ${last.nodes}`);
  assert.ok(last.heap < first.heap + 2e6, `${first.heap} bytes became ${last.heap}`);
  assert.deepEqual(faults, []);
  await context.close();
});
