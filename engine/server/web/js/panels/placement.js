// Where the weights lie: a bar for each layer, by memory; and what is no layer.
import { html, signal, useEffect } from "../lib/html.js";
import { getJson } from "../lib/api.js";
import { bytes, tierName } from "../lib/format.js";
import { hello } from "../lib/live.js";
import { Panel, Table } from "./frame.js";

const found = signal(null);
const problem = signal("");
const ORDER = ["gpu0", "gpu1", "cpu", "disk", "net"];

async function load() {
  try {
    found.value = await getJson("/v1/headrace/placement");
    problem.value = "";
  } catch (error) {
    problem.value = error.message;
  }
}

/** Parts of a layer, from the bottom up: [tier, "dense" or "experts", bytes]. */
function partsOf(layer, main) {
  const experts = ORDER.filter((tier) => layer.experts[tier]).map((tier) => [tier, "experts", layer.experts[tier]]);
  return [[main, "dense", layer.dense], ...experts];
}

function Bars({ layers, main }) {
  const height = 120;
  const most = Math.max(...layers.map((one) => partsOf(one, main).reduce((sum, part) => sum + part[2], 0)), 1);
  const step = 100 / layers.length;
  return html`<svg class="bars" viewBox=${`0 0 100 ${height}`} preserveAspectRatio="none" role="img"
    aria-label=${`Bytes of ${layers.length} layers by memory; the table has them`}>
    ${layers.map((layer, i) => {
      let y = height;
      return partsOf(layer, main).map(([tier, kind, size]) => {
        const h = (size / most) * height;
        y -= h;
        return html`<rect class=${`tier ${tier} ${kind}`} x=${i * step + step * 0.08} y=${y} width=${step * 0.84} height=${h}>
          <title>layer ${i}: ${kind} in ${tierName(tier)}, ${bytes(size)}</title>
        </rect>`;
      });
    })}
  </svg>`;
}

function sums(data) {
  const totals = {};
  const add = (tier, size) => (totals[tier] = (totals[tier] ?? 0) + size);
  for (const layer of data.layers) for (const [tier, , size] of partsOf(layer, data.main)) add(tier, size);
  for (const one of Object.values(data.rest)) add(one.tier, one.bytes);
  return totals;
}

const total = (layers, tier) => layers.reduce((sum, one) => sum + (one.experts[tier] ?? 0), 0);

function rows(data) {
  const tiers = ORDER.filter((tier) => total(data.layers, tier));
  const names = [...new Set(data.layers.flatMap((one) => one.formats))].join(", ");
  const swatch = (tier, kind) => html`<span class=${`swatch tier ${tier} ${kind}`}></span>`;
  return [
    ["what", "in", "bytes"],
    ...tiers.map((tier) => [html`${swatch(tier, "experts")}experts`, tierName(tier), bytes(total(data.layers, tier))]),
    [html`${swatch(data.main, "dense")}rest of the layers`, tierName(data.main), bytes(data.layers.reduce((sum, one) => sum + one.dense, 0))],
    ...Object.entries(data.rest).map(([name, one]) => [
      html`<span class="swatch none"></span>${name === "head" && one.is_embedding ? "head = embedding" : name}${one.tokens ? `, ${one.tokens.toLocaleString("en")} tokens` : ""}`,
      tierName(one.tier), bytes(one.bytes),
    ]),
    ["formats", "", names],
  ];
}

export function Placement() {
  const facts = hello.value;
  useEffect(() => {
    if (facts) load();
  }, [facts]);
  const data = found.value;
  if (!data) return html`<${Panel} id="placement" title="Placement"><p class="empty">${problem.value || "loading"}</p><//>`;
  const devices = Object.entries(data.devices);
  const totals = sums(data);
  return html`<${Panel} id="placement" title="Placement" note=${data.name}
    table=${() => [["layer", ...ORDER.filter((tier) => total(data.layers, tier)).map((tier) => `experts in ${tierName(tier)}`), "rest", "formats"],
      ...data.layers.map((one, i) => [i, ...ORDER.filter((tier) => total(data.layers, tier)).map((tier) => bytes(one.experts[tier] ?? 0)), bytes(one.dense), one.formats.join(", ")])]}>
    <${Bars} layers=${data.layers} main=${data.main} />
    <p class="hint">One bar for each layer, the first at the left.</p>
    <${Table} rows=${rows(data)} label="what lies where" className="numbers" />
    <p class="hint">${devices.map(([tier, one]) => `${one.name === "RAM" ? "RAM" : `${tierName(tier)}: ${one.name}`}: ${bytes(totals[tier] ?? 0)} of ${bytes(one.free)} that may be taken`).join("; ")}</p>
  <//>`;
}
