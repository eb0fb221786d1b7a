// Counts of single experts, asked for every two seconds while passes come, and what they add up to.
import { signal } from "./html.js";
import { getJson } from "./api.js";
import { passes } from "./live.js";

const EVERY_MS = 2000;
const HALF_LIFE_MS = 15_000; // of what counts as "lately"

/** {layers, experts, top_k, tiers, where, prompt, generated, lately: {prompt, generated}}, arrays by layer and expert. */
export const routed = signal(null);
export const problem = signal("");
let asked = { at: 0, index: -1, isOpen: false };

const bytesOf = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const numbersOf = (text) => new Float64Array(bytesOf(text).buffer);

function take(data, at) {
  const before = routed.value;
  const now = { prompt: numbersOf(data.prompt), generated: numbersOf(data.generated) };
  const isSame = before && before.passes <= data.passes && before.where.length === now.prompt.length;
  const fades = isSame ? 0.5 ** ((at - before.at) / HALF_LIFE_MS) : 0;
  const fade = (name) => now[name].map((count, i) => (isSame ? before.lately[name][i] * fades + count - before[name][i] : 0));
  routed.value = { ...data, ...now, at, where: bytesOf(data.where), lately: { prompt: fade("prompt"), generated: fade("generated") } };
}

/** Asks, if something has happened since the last time and that is a while ago. */
export async function refresh() {
  const now = performance.now();
  const index = passes.at(-1)?.index ?? -2;
  if (asked.isOpen || index === asked.index || now - asked.at < EVERY_MS) return;
  asked = { at: now, index, isOpen: true };
  try {
    take(await getJson("/v1/headrace/experts"), now);
    problem.value = "";
  } catch (error) {
    problem.value = error.message;
  }
  asked.isOpen = false;
}

/** The counts that were chosen: tokens "generated", "prompt" or "all"; span "start" or "lately". */
export function chosen(found, tokens, span) {
  const from = span === "lately" ? found.lately : found;
  return tokens === "all" ? from.prompt.map((count, i) => count + from.generated[i]) : from[tokens];
}

/** Of each layer with experts: {layer, counts, sum, order: its experts, the hottest first}. */
export function byLayer(found, counts) {
  const rows = [];
  for (let layer = 0; layer < found.layers; layer += 1) {
    const first = layer * found.experts;
    if (found.where[first] === 255) continue;
    const row = counts.subarray(first, first + found.experts);
    const order = Array.from(row.keys()).sort((a, b) => row[b] - row[a] || a - b);
    rows.push({ layer, counts: row, sum: row.reduce((a, b) => a + b, 0), order });
  }
  return rows;
}

/** Share of all choices that the hottest experts took, by per cent of all experts, 0 to 100; null before the first. */
export function curve(rows) {
  const all = Float64Array.from(rows.flatMap((row) => Array.from(row.counts))).sort().reverse();
  const total = all.reduce((a, b) => a + b, 0);
  if (!total) return null;
  let sum = 0;
  const sums = Array.from(all, (count) => (sum += count) / total);
  return Array.from({ length: 101 }, (_, percent) => (percent ? sums[Math.max(1, Math.round((percent / 100) * all.length)) - 1] : 0));
}

/** By tier that has experts: {tier, number, experts, choices}, shares of all. */
export function byTier(found, rows) {
  const tiers = found.tiers.map((tier, number) => ({ tier, number, experts: 0, choices: 0 }));
  for (const { layer, counts } of rows)
    counts.forEach((count, expert) => {
      const one = tiers[found.where[layer * found.experts + expert]];
      one.experts += 1;
      one.choices += count;
    });
  const [experts, choices] = ["experts", "choices"].map((name) => tiers.reduce((sum, one) => sum + one[name], 0));
  return tiers.filter((one) => one.experts).map((one) => ({ ...one, experts: one.experts / experts, choices: choices ? one.choices / choices : 0 }));
}
