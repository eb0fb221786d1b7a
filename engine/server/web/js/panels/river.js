// Bytes of every tier as they flow: a stack over the last passes, and what the memory could have read meanwhile.
import { html, signal, useMemo } from "../lib/html.js";
import { Chart, axes } from "../lib/chart.js";
import { colour, series } from "../lib/colours.js";
import { bytes, groupName, number, tierName } from "../lib/format.js";
import { columns, hello, lastOf, version } from "../lib/live.js";
import { Choice, Panel, Table } from "./frame.js";

export const phase = signal("decode");
const unit = signal("token");
const tier = signal("all");
const SMOOTH = 8; // passes
const named = (layer) => `${tierName(layer.tier)} ${groupName(layer.group)}`.trim();

function meanOf(values) {
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - SMOOTH + 1), i + 1);
    return part.reduce((sum, one) => sum + one, 0) / part.length;
  });
}

/** Columns for the chart: x, the sums from the top of the stack down, the ceiling if there is one. */
function stack(chosen, layers, rate) {
  const isRate = unit.value === "rate";
  const last = chosen.length - 1;
  const x = chosen.map((_, i) => i - last);
  const each = chosen.map((one) => (isRate ? Math.max(one.measured, 1e-6) / 1e3 : one.tokens));
  const sums = [];
  let below = chosen.map(() => 0);
  for (const layer of layers) {
    below = chosen.map((one, i) => below[i] + layer.columns.reduce((s, c) => s + (one.bytes[c] ?? 0), 0) / each[i]);
    sums.unshift(below);
  }
  const ceiling = rate
    ? meanOf(chosen.map((one) => (isRate ? rate : (rate * one.measured) / 1e3 / one.tokens)))
    : null;
  return { data: [x, ...sums], ceiling };
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

/** The top of the scale: what flows is always seen whole, the ceiling where it is not far above. */
function scale([, highest], ceiling) {
  const flow = Math.max(...(highest ?? []), 1);
  const near = ceiling ? median(ceiling) : 0;
  const isSeen = near > 0 && near < flow * 4;
  return { limit: isSeen ? Math.max(flow * 1.1, near * 1.15) : flow * 1.25, isSeen, near };
}

function legend(chosen, layers, rate) {
  const tokens = chosen.reduce((sum, one) => sum + one.tokens, 0) || 1;
  const time = chosen.reduce((sum, one) => sum + one.measured, 0) / 1e3;
  const read = layers.map((layer) => chosen.reduce((s, one) => s + layer.columns.reduce((t, c) => t + (one.bytes[c] ?? 0), 0), 0));
  const all = read.reduce((a, b) => a + b, 0) || 1;
  const rows = layers.map((layer, i) => [
    html`<span class="swatch" style=${{ background: `var(--${layer.variable})` }}></span>${named(layer)}`,
    bytes(read[i] / tokens), `${number((100 * read[i]) / all)} %`, time ? `${bytes(read[i] / time)}/s` : "–",
  ]);
  const sum = ["all", bytes(all / tokens), "100 %", time ? `${bytes(all / time)}/s` : "–"];
  const known = rate && [html`<span class="swatch line"></span>can be read`, "", "", `${bytes(rate)}/s`];
  return [["bytes of", "a token", "share", "rate"], ...rows.reverse(), sum, ...(known ? [known] : [])];
}

export function PhaseChoice() {
  return html`<${Choice} label="passes of" value=${phase.value} onChange=${(one) => (phase.value = one)}
    options=${[["decode", "decode"], ["mixed", "mixed"], ["prefill", "prefill"], ["all", "all passes"]]} />`;
}

export function River() {
  const facts = hello.value;
  const at = version.value;
  const chosen = useMemo(() => lastOf(phase.value), [at, phase.value, facts]);
  const tiers = [...new Set(columns.map((one) => one.split(".")[0]))];
  const shown = tiers.length === 1 ? tiers[0] : tier.value;
  const layers = series(columns).filter((one) => shown === "all" || one.tier === shown);
  const rate = facts?.rates[shown] ?? null;
  const { data, ceiling, limit, isSeen, near } = useMemo(() => {
    const made = stack(chosen, layers, rate);
    const found = scale(made.data, made.ceiling);
    return { ...made, ...found, data: found.isSeen ? [...made.data, made.ceiling] : made.data };
  }, [chosen, unit.value, shown, layers.length, rate]);
  const shape = `${layers.map((one) => one.key)}|${isSeen}|${unit.value}`;
  const isRate = unit.value === "rate";
  const options = () => ({
    scales: { x: { time: false, range: [-Math.max(30, chosen.length - 1), 0] }, y: { range: () => [0, limits.get(shape)] } },
    axes: axes((value) => bytes(value) + (isRate ? "/s" : ""), isRate ? 74 : 62),
    series: [
      {},
      ...[...layers].reverse().map((one) => ({
        label: one.key, fill: () => colour(one.variable), stroke: () => colour(one.variable), width: 1, points: { show: false },
      })),
      ...(isSeen ? [{ label: "ceiling", stroke: () => colour("ceiling"), width: 1.5, dash: [5, 4], points: { show: false } }] : []),
    ],
  });
  limits.set(shape, limit);
  const rows = legend(chosen.slice(-32), layers, rate);
  const newest = chosen.at(-1);
  const label = newest
    ? `Bytes ${isRate ? "a second" : "of a token"} over the last ${chosen.length} passes; the last 32: ${rows.slice(1).map((row, i) => `${layers.length > i ? `${named(layers.at(-1 - i))}` : "in all"} ${isRate ? row[3] : row[1]}`).slice(0, layers.length + 1).join(", ")}`
    : "No pass yet";
  return html`<${Panel} id="river" title="River" className="wide" note=${`bytes ${isRate ? "a second" : "a token"}, last ${chosen.length} passes`}
    table=${() => table(chosen, layers)}
    controls=${html`
      ${tiers.length > 1 && html`<${Choice} label="tier" value=${tier.value} onChange=${(one) => (tier.value = one)}
        options=${[["all", "all tiers"], ...tiers.map((one) => [one, tierName(one)])]} />`}
      <${PhaseChoice} />
      <${Choice} label="unit" value=${unit.value} onChange=${(one) => (unit.value = one)}
        options=${[["token", "bytes a token"], ["rate", "bytes a second"]]} />`}>
    ${newest
      ? html`<div class="beside">
          <${Chart} shape=${`${shape}|${Math.max(30, chosen.length - 1)}`} options=${options} data=${data} height=${230} label=${label} />
          <${Table} rows=${rows} label="bytes by tier, mean of the last 32 passes" className="numbers" />
        </div>`
      : html`<p class="empty">No ${phase.value === "all" ? "" : phase.value} pass yet: ask for something.</p>`}
    ${near > 0 && html`<p class="hint">${isSeen ? "Dashed" : "Above this chart"}: ${ceilingInWords(shown, rate, near, isRate)}</p>`}
  <//>`;
}

const limits = new Map();

function ceilingInWords(shown, rate, near, isRate) {
  const measured = `the ${bytes(rate)}/s that this machine was measured at`;
  return isRate
    ? `${measured}, for ${tierName(shown)}.`
    : `what ${tierName(shown)} could have read in the time of a token (median ${bytes(near)}), at ${measured}.`;
}

function table(chosen, layers) {
  const rows = chosen.slice(-20).reverse().map((one) => [
    one.index, hello.value.phases[one.phase], one.tokens,
    ...layers.map((layer) => bytes(layer.columns.reduce((s, c) => s + (one.bytes[c] ?? 0), 0))), number(one.measured),
  ]);
  return [["pass", "phase", "tokens", ...layers.map(named), "ms"], ...rows];
}
