// What each layer's experts read, pass by pass: a row for each layer, a column for each pass, the newest at the right.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { colours } from "../lib/chart.js";
import { colour } from "../lib/colours.js";
import { bytes, number, percent } from "../lib/format.js";
import { hello, passes, version } from "../lib/live.js";
import { Panel } from "./frame.js";

const CELL = 3; // pixels of a pass
const rowHeight = (layers) => Math.max(3, Math.min(14, Math.floor(200 / Math.max(1, layers))));

/** 256 colours from nothing to all, [red, green, blue]; what is little can be told apart. */
export function palette() {
  const ends = ["heat-0", "heat-1", "heat-2"].map((name) => colour(name).match(/[\d.]+/g).slice(0, 3).map(Number));
  return Array.from({ length: 256 }, (_, i) => {
    const at = 2 * Math.sqrt(i / 255);
    const [from, to] = at < 1 ? [ends[0], ends[1]] : [ends[1], ends[2]];
    const part = at < 1 ? at : at - 1;
    return from.map((one, k) => Math.round(one + (to[k] - one) * part));
  });
}

function draw(canvas, layers, width) {
  const shown = passes.slice(-Math.max(1, Math.floor(width / CELL)));
  const height = rowHeight(layers);
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(layers * height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const tones = palette().map(([r, g, b]) => `rgb(${r} ${g} ${b})`);
  const start = width - shown.length * CELL;
  shown.forEach((one, i) => {
    for (let layer = 0; layer < layers; layer += 1) {
      pen.fillStyle = tones[one.heat[layer] ?? 0];
      pen.fillRect(start + i * CELL, layer * height, CELL, height - (height > 4 ? 1 : 0));
    }
  });
  return { shown, start, height };
}

function inWords(one, layer) {
  const facts = hello.value;
  const share = one.heat[layer] / 255;
  const size = share * facts.experts_bytes[layer];
  return facts.experts_bytes[layer]
    ? `layer ${layer}, pass ${one.index} (${facts.phases[one.phase]}, ${one.tokens} token${one.tokens > 1 ? "s" : ""}): about ${number(share * facts.experts, 2)} of ${facts.experts} experts, ${bytes(size)}, ${percent(share)} of the layer's`
    : `layer ${layer} has no experts`;
}

/** By layer the mean share over all passes that are kept. */
function means() {
  const facts = hello.value;
  const sums = facts.experts_bytes.map((_, layer) => passes.reduce((sum, one) => sum + (one.heat[layer] ?? 0) / 255, 0));
  return sums.map((sum) => (passes.length ? sum / passes.length : 0));
}

export function Experts() {
  const facts = hello.value;
  const canvas = useRef(null);
  const seen = useRef(null);
  const [at, point] = useState(null); // {pass index, layer}
  const look = colours.value;
  const layers = facts?.layers ?? 0;

  useEffect(() => {
    if (canvas.current && layers) seen.current = draw(canvas.current, layers, canvas.current.parentElement.clientWidth);
  }, [version.value, look, layers]);

  const under = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const { shown, start, height } = seen.current;
    const i = Math.floor((event.clientX - box.left - start) / CELL);
    const layer = Math.floor((event.clientY - box.top) / height);
    point(shown[i] && layer >= 0 && layer < layers ? { index: shown[i].index, layer } : null);
  };
  const move = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !passes.length) return;
    event.preventDefault();
    const here = passes.findIndex((one) => one.index === at?.index);
    const i = Math.max(0, Math.min(passes.length - 1, (here < 0 ? passes.length - 1 : here) + step[0]));
    point({ index: passes[i].index, layer: Math.max(0, Math.min(layers - 1, (at?.layer ?? 0) + (at ? step[1] : 0))) });
  };
  const chosen = at && passes.find((one) => one.index === at.index);
  const has = facts?.experts_bytes.some(Boolean);
  const note = has ? `${facts.experts} a layer, ${facts.top_k} chosen by each token` : "";
  return html`<${Panel} id="experts" title="Experts by layer" note=${note}
    table=${has && (() => [["layer", "mean share read", "bytes of its experts"], ...means().map((share, i) => [i, percent(share), bytes(facts.experts_bytes[i])])])}>
    ${has
      ? html`<div class="heat" role="application" aria-roledescription="map of layers and passes" tabindex="0"
            aria-label="Share of each layer's experts that each pass read; arrow keys move" aria-describedby="heat-at" onKeyDown=${move}>
          <canvas ref=${canvas} style=${{ width: "100%", height: `${layers * rowHeight(layers)}px` }} aria-hidden="true"
            onPointerMove=${under} onPointerLeave=${() => point(null)}></canvas>
        </div>
        <p class="scale"><span>0</span><span class="ramp" aria-hidden="true"></span><span>all</span></p>
        <p id="heat-at" class="hint" aria-live="polite">${chosen ? inWords(chosen, at.layer) : "Rows: layers, the first on top. Columns: passes, the newest at the right. Colour: how much of the layer's routed experts a pass read."}</p>`
      : html`<p class="empty">This model has no routed experts.</p>`}
  <//>`;
}
