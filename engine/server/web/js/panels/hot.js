// Which experts are chosen, and where they lie: a row for each layer, a column for each expert, by number or by heat.
import { html, signal, useEffect, useMemo, useRef, useState } from "../lib/html.js";
import { colours } from "../lib/chart.js";
import { colour } from "../lib/colours.js";
import { number, percent, tierName, whole } from "../lib/format.js";
import { hello, version } from "../lib/live.js";
import { byLayer, byTier, chosen, curve, problem, refresh, routed } from "../lib/routed.js";
import { palette } from "./experts.js";
import { Choice, Panel, Table } from "./frame.js";

const tokens = signal("all");
const span = signal("start");
const order = signal("number");
const look = signal("heat");
const HOTTEST = 8; // times an even share: as hot as the scale goes
const SHARES = [1, 5, 10, 20, 50];
const rowHeight = (layers) => Math.max(4, Math.min(16, Math.floor(320 / Math.max(1, layers))));
const rgb = (name) => colour(name).match(/[\d.]+/g).slice(0, 3).map(Number);

/** The expert in a column. */
const expertAt = (row, column) => (order.value === "heat" ? row.order[column] : column);

/** How hot an expert is: 1 is an even share of its layer's choices. */
const heatOf = (row, expert) => (row.sum ? (row.counts[expert] * row.counts.length) / row.sum : 0);

/** Colours of all cells, a pixel each, drawn as large as the canvas is. */
function draw(canvas, found, rows, isByTier) {
  const cells = new OffscreenCanvas(found.experts, rows.length);
  const pen = cells.getContext("2d");
  const image = pen.createImageData(found.experts, rows.length);
  const tones = palette();
  const tiers = found.tiers.map((_, i) => rgb(`experts-${[1, 2, 0][i] ?? 0}`));
  const ground = rgb("panel");
  rows.forEach((row, y) => {
    for (let column = 0; column < found.experts; column += 1) {
      const expert = expertAt(row, column);
      const heat = Math.min(1, heatOf(row, expert) / HOTTEST);
      let tone = tones[Math.round(255 * heat)];
      if (isByTier) {
        const strength = 0.12 + 0.88 * Math.sqrt(heat);
        tone = tiers[found.where[row.layer * found.experts + expert]].map((part, i) => ground[i] + (part - ground[i]) * strength);
      }
      image.data.set([...tone, 255], 4 * (y * found.experts + column));
    }
  });
  pen.putImageData(image, 0, 0);
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.parentElement.clientWidth * ratio);
  canvas.height = Math.round(rows.length * rowHeight(rows.length) * ratio);
  const to = canvas.getContext("2d");
  to.imageSmoothingEnabled = false;
  to.drawImage(cells, 0, 0, canvas.width, canvas.height);
}

function inWords(found, row, column) {
  const expert = expertAt(row, column);
  const count = row.counts[expert];
  const share = row.sum ? (count * found.top_k) / row.sum : 0;
  const rank = row.order.indexOf(expert) + 1;
  const where = tierName(found.tiers[found.where[row.layer * found.experts + expert]]);
  return `layer ${row.layer}, expert ${expert}: ${whole(count)} tokens, ${percent(share)} of the layer's, ${number(heatOf(row, expert), 2)} times an even share; rank ${rank}, in ${where}`;
}

/** The map, read by pointer or arrow keys. */
function HeatMap({ found, rows, isByTier }) {
  const canvas = useRef(null);
  const [at, point] = useState(null); // {y, column, text}
  const theme = colours.value;
  useEffect(() => {
    if (canvas.current && rows.length) draw(canvas.current, found, rows, isByTier);
  }, [found, rows, isByTier, order.value, theme]);
  useEffect(() => {
    const observer = new ResizeObserver(() => canvas.current && rows.length && draw(canvas.current, found, rows, isByTier));
    observer.observe(canvas.current.parentElement);
    return () => observer.disconnect();
  }, [found, rows, isByTier, order.value]);
  const go = (y, column) => {
    const to = { y: Math.max(0, Math.min(rows.length - 1, y)), column: Math.max(0, Math.min(found.experts - 1, column)) };
    point({ ...to, text: inWords(found, rows[to.y], to.column) });
  };
  const under = (event) => {
    const box = canvas.current.getBoundingClientRect();
    go(Math.floor(((event.clientY - box.top) / box.height) * rows.length), Math.floor(((event.clientX - box.left) / box.width) * found.experts));
  };
  const move = (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || !rows.length) return;
    event.preventDefault();
    if (at) go(at.y + step[0], at.column + step[1]);
    else go(0, 0);
  };
  return html`<div>
    <div class="map" role="application" aria-roledescription="map of layers and experts" tabindex="0"
      aria-label="How often each expert of each layer was chosen; arrow keys move" aria-describedby="hot-at" onKeyDown=${move}>
      <canvas ref=${canvas} style=${{ width: "100%", height: `${rows.length * rowHeight(rows.length)}px` }} aria-hidden="true"
        onPointerMove=${under} onPointerLeave=${() => point(null)}></canvas>
    </div>
    ${isByTier
      ? html`<p class="keys">${byTier(found, rows).map((one) => html`<span key=${one.tier}><span class=${`swatch tier ${one.tier} experts`}></span>${tierName(one.tier)}</span>`)}<span>: the stronger, the hotter</span></p>`
      : html`<p class="scale"><span>never</span><span class="ramp" aria-hidden="true"></span><span>${HOTTEST} times an even share</span></p>`}
    <p id="hot-at" class="hint" aria-live="polite">${at
      ? at.text
      : `Rows: layers, the first on top. Columns: experts, ${order.value === "heat" ? "the hottest of each layer at the left" : "by their number"}.`}</p>
  </div>`;
}

/** Share of the choices over share of the experts, the hottest first; dashed: all equally hot. */
function Curve({ points }) {
  const line = points.map((share, i) => `${i},${100 - 100 * share}`).join(" ");
  const words = SHARES.map((one) => `the hottest ${one} % of the experts take ${percent(points[one])}`).join(", ");
  return html`<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label=${`Of all choices ${words}`}>
    <polyline class="even" points="0,100 100,0" /><polyline class="share" points=${line} />
  </svg>`;
}

function sums(found, rows, points) {
  const tiers = byTier(found, rows);
  return [
    ["experts", "take of the choices"],
    ...SHARES.map((one) => [`hottest ${one} %`, percent(points[one])]),
    ...(tiers.length > 1 ? tiers.map((one) => [`${percent(one.experts)} in ${tierName(one.tier)}`, percent(one.choices)]) : []),
  ];
}

function table(found, rows) {
  const tiers = byTier(found, rows);
  const more = tiers.length > 1 ? tiers : [];
  return [
    ["layer", "choices", "hottest expert", "of the tokens", "in", "times an even share", "never chosen", ...more.map((one) => `choices in ${tierName(one.tier)}`)],
    ...rows.map((row) => {
      const [first] = row.order;
      const there = byTier(found, [row]);
      return [
        row.layer, whole(row.sum), first, percent(row.sum ? (row.counts[first] * found.top_k) / row.sum : 0),
        tierName(found.tiers[found.where[row.layer * found.experts + first]]), number(heatOf(row, first), 2),
        row.counts.filter((count) => count === 0).length,
        ...more.map((one) => percent(there.find((other) => other.tier === one.tier)?.choices ?? 0)),
      ];
    }),
  ];
}

function Controls({ hasTiers }) {
  const bind = (which) => ({ value: which.value, onChange: (one) => (which.value = one) });
  return html`
    <${Choice} label="chosen by tokens of" ...${bind(tokens)} options=${[["all", "all tokens"], ["generated", "generated"], ["prompt", "prompts"]]} />
    <${Choice} label="chosen when" ...${bind(span)} options=${[["start", "since the start"], ["lately", "lately"]]} />
    <${Choice} label="order of experts" ...${bind(order)} options=${[["number", "by number"], ["heat", "by heat"]]} />
    ${hasTiers && html`<${Choice} label="colours of experts" ...${bind(look)} options=${[["heat", "heat"], ["tier", "memory"]]} />`}`;
}

export function Hot() {
  const facts = hello.value;
  const tick = version.value;
  useEffect(() => {
    if (facts) refresh();
  }, [facts, tick]);
  const found = routed.value;
  const rows = useMemo(() => (found ? byLayer(found, chosen(found, tokens.value, span.value)) : []), [found, tokens.value, span.value]);
  const points = useMemo(() => curve(rows), [rows]);
  const hasTiers = found ? byTier(found, rows).length > 1 : false;
  const has = Boolean(rows.length && points);
  const text = problem.value || (found && !rows.length ? "This model has no routed experts." : "No expert was chosen yet: ask for something.");
  return html`<${Panel} id="hot" title="Hot experts" className="wide"
    note=${has ? `${whole(rows.reduce((sum, row) => sum + row.sum, 0))} choices${span.value === "lately" ? " lately" : ""}` : ""}
    controls=${html`<${Controls} hasTiers=${hasTiers} />`} table=${has && (() => table(found, rows))}>
    ${has
      ? html`<div class="beside">
          <${HeatMap} found=${found} rows=${rows} isByTier=${hasTiers && look.value === "tier"} />
          <div><${Curve} points=${points} /><${Table} rows=${sums(found, rows, points)} label="share of the choices that the hottest experts take" className="numbers" /></div>
        </div>`
      : html`<p class="empty">${text}</p>`}
  <//>`;
}
