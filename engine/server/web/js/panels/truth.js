// What a token should take and what it took, and what the difference comes from.
import { html, useMemo } from "../lib/html.js";
import { Chart, axes } from "../lib/chart.js";
import { colour } from "../lib/colours.js";
import { number, tierName } from "../lib/format.js";
import { hello, lastOf, tick, version } from "../lib/live.js";
import { phase, PhaseChoice } from "./river.js";
import { Panel, Table } from "./frame.js";

let limit = 1;

function lines(chosen) {
  const last = chosen.length - 1;
  return [
    chosen.map((_, i) => i - last),
    chosen.map((one) => one.measured / one.tokens),
    chosen.map((one) => (one.predicted === null ? null : one.predicted / one.tokens)),
  ];
}

/** The top of the scale: single passes that took very long do not flatten the others. */
function top([, measured, predicted]) {
  const sorted = [...measured].sort((a, b) => a - b);
  const most = Math.max(...predicted.map((one) => one ?? 0), 0);
  return 1.2 * Math.max(sorted[Math.floor(sorted.length * 0.97)] ?? 1, most, 1e-3);
}

const options = (width) => () => ({
  scales: { x: { time: false, range: [-width, 0] }, y: { range: () => [0, limit] } },
  axes: axes((value) => `${number(value)} ms`),
  series: [
    {},
    { label: "measured", stroke: () => colour("measured"), width: 1.25, points: { show: false } },
    { label: "predicted", stroke: () => colour("predicted"), width: 2, dash: [6, 4], points: { show: false } },
  ],
  bands: [{ series: [1, 2], fill: () => colour("residual") }, { series: [2, 1], fill: () => colour("residual"), dir: 1 }],
});

const TERMS = { fixed: "calls and layers", handoff: "hand-off" };

/** Milliseconds of a token by what they go to, over the window of the sentence. */
function terms(found) {
  const names = [...new Set([...Object.keys(found.predicted_time_ms ?? {}), ...Object.keys(found.time_ms ?? {})])];
  const each = (value) => (value === undefined || value === null ? "–" : number(value / found.tokens));
  const off = found.predicted_ms ? `${found.measured_ms > found.predicted_ms ? "+" : ""}${number((100 * (found.measured_ms - found.predicted_ms)) / found.predicted_ms)} %` : "–";
  return [
    ["ms a token", "predicted", "measured"],
    ...names.map((name) => [TERMS[name] ?? tierName(name), each(found.predicted_time_ms?.[name]), each(found.time_ms?.[name])]),
    ["in all", each(found.predicted_ms), each(found.measured_ms)],
    ["difference", "", off],
  ];
}

export function Truth() {
  const at = version.value;
  const chosen = useMemo(() => lastOf(phase.value), [at, phase.value, hello.value]);
  const data = useMemo(() => lines(chosen), [chosen]);
  limit = top(data);
  const now = tick.value;
  const width = Math.max(30, chosen.length - 1);
  const window = now?.window;
  const sentence = now?.sentence ?? "";
  const label = window
    ? `Predicted and measured milliseconds of a token over ${chosen.length} passes. ${sentence}`
    : "No pass yet";
  return html`<${Panel} id="truth" title="Truth" className="wide" note="ms a token, predicted beside measured"
    controls=${html`<${PhaseChoice} />`}
    table=${() => [["pass", "tokens", "measured ms", "predicted ms", "difference"], ...chosen.slice(-20).reverse().map((one) => [one.index, one.tokens, number(one.measured), number(one.predicted), one.predicted === null ? "–" : number(one.measured - one.predicted)])]}>
    ${chosen.length
      ? html`<div class="beside">
          <${Chart} shape=${`truth${width}`} options=${options(width)} data=${data} height=${190} label=${label} />
          <div>
            ${window && html`<${Table} rows=${terms(window)} label="milliseconds of a token" className="numbers" />`}
            <p class="keys"><span class="swatch measured"></span>measured <span class="swatch predicted"></span>predicted <span class="swatch residual"></span>difference</p>
          </div>
        </div>`
      : html`<p class="empty">No pass yet: ask for something.</p>`}
    <p class="sentence">${sentence}</p>
  <//>`;
}
