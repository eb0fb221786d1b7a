// Chromium with the page in it, and everything that it did which it should not.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

export const { PAGE_URL, KEY_URL, KEY, CHROMIUM } = process.env;
export const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

export function launch() {
  return chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
}

/** A page in a profile of its own, and its faults: errors, violations of its policy, requests to elsewhere. */
export async function open(browser, { url = PAGE_URL, before, goes = true, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "data:" && protocol !== "blob:" && origin !== new URL(url).origin) faults.push(`request: ${request.url()}`);
  });
  await page.exposeFunction("tellFault", (text) => faults.push(text));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) =>
      globalThis.tellFault(`policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sample} ${event.sourceFile}:${event.lineNumber}`));
  });
  await before?.(page);
  await page.goto(url);
  if (goes) await page.locator(".state.live").waitFor();
  return { page, context, faults };
}

/** Lets answers be short. */
export async function limit(page, tokens) {
  await page.getByRole("button", { name: "settings" }).click();
  await page.getByLabel("most tokens").fill(String(tokens));
  await page.getByRole("button", { name: "settings" }).click();
}

/** Writes something, and waits for the answer's end. */
export async function ask(page, text) {
  const before = await page.locator(".message.assistant .cost").count();
  await page.locator(".composer textarea").fill(text);
  await page.keyboard.press("Enter");
  await page.locator(".message.assistant .cost").nth(before).waitFor({ timeout: 60_000 });
  await page.getByRole("button", { name: "send", exact: true }).waitFor();
}

/** The body of a stream of chat chunks, as the server would send it. */
export function chunks(deltas) {
  const all = [...deltas.map((delta) => ({ delta, index: 0, finish_reason: null })), { delta: {}, index: 0, finish_reason: "stop" }];
  const lines = all.map((one) => `data: ${JSON.stringify({ choices: [one] })}\n\n`);
  const usage = `data: ${JSON.stringify({ choices: [], usage: { completion_tokens: 7, prompt_tokens: 3 } })}\n\n`;
  return `${lines.join("")}${usage}data: [DONE]\n\n`;
}

/** Answers chats with the bodies given, in turn; returns what was asked. */
export async function fake(page, bodies) {
  const asked = [];
  await page.route("**/v1/chat/completions", (route) => {
    asked.push(route.request().postDataJSON());
    route.fulfill({ contentType: "text/event-stream", body: bodies[Math.min(asked.length, bodies.length) - 1] });
  });
  return asked;
}
