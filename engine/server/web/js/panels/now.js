// Numbers of this moment, each with its last minute.
import { html } from "../lib/html.js";
import { bytes, milliseconds, number, percent, whole } from "../lib/format.js";
import { bytesPerToken, sparks, tick } from "../lib/live.js";
import { Panel } from "./frame.js";

const WIDTH = 120;
const HEIGHT = 22;

/** A line of the last minute; gaps where nothing is known. */
function Spark({ values }) {
  const known = values.filter((one) => one !== null);
  if (known.length < 2) return html`<svg class="spark" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true"></svg>`;
  const most = Math.max(...known, 1e-9);
  const step = WIDTH / 59;
  const start = WIDTH - (values.length - 1) * step;
  let pen = "M";
  const path = values
    .map((value, i) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      const piece = `${pen}${(start + i * step).toFixed(1)} ${(HEIGHT - 1 - (value / most) * (HEIGHT - 3)).toFixed(1)}`;
      pen = "L";
      return piece;
    })
    .join("");
  return html`<svg class="spark" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
    <path d=${path} vector-effect="non-scaling-stroke" />
  </svg>`;
}

function figures(now) {
  const { kv } = now;
  return [
    ["decode", `${number(now.decode_tok_s)} tok/s`, "decode", "new tokens of all requests in the last second"],
    ["prefill", `${number(now.prefill_tok_s)} tok/s`, "prefill", "prompt tokens computed in the last second"],
    ["first token", milliseconds(now.ttft_ms), "ttft", "of the newest request that ended, waiting included"],
    ["bytes a token", bytes(bytesPerToken(32)), "bytes", "mean of the last 32 decode passes, all tiers"],
    ["running", whole(now.running), "running", "requests that share passes"],
    ["waiting", whole(now.waiting), "waiting", "requests in the queue"],
    ["KV in use", percent(kv.pages ? kv.used / kv.pages : 0), "kv", "pages of the cache that requests hold"],
    ["from cache", now.prompt ? percent(now.reused / now.prompt) : "–", "hits", "share of all prompt tokens so far that were in the KV cache"],
  ];
}

export function Now() {
  const now = tick.value;
  const found = now ? figures(now) : [];
  return html`<${Panel} id="now" title="Now" className="wide"
    table=${() => [["what", "value", "meaning"], ...found.map(([name, value, , meaning]) => [name, value, meaning])]}>
    <dl class="figures">
      ${found.map(([name, value, spark, meaning]) => html`<div title=${meaning}>
        <dt>${name}</dt>
        <dd>${value}</dd>
        <${Spark} values=${sparks[spark] ?? []} />
      </div>`)}
    </dl>
  <//>`;
}
