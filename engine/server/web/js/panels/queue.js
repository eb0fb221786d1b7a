// A row for each request that runs or waits, and the last ones that ended.
import { html, signal } from "../lib/html.js";
import { call } from "../lib/api.js";
import { milliseconds, number, seconds, whole } from "../lib/format.js";
import { tick } from "../lib/live.js";
import { Panel } from "./frame.js";

const leaving = signal(new Set());
const said = signal("");

async function cancel(id) {
  leaving.value = new Set([...leaving.value, id]);
  try {
    await call("/v1/headrace/cancel", { body: { id } });
    said.value = `request ${id} is cancelled`;
  } catch (error) {
    said.value = error.message;
  }
}

function Progress({ one }) {
  const isPrompt = one.phase !== "decode";
  const [done, all] = isPrompt ? [one.n_prompt_tokens_processed, one.n_prompt_tokens] : [one.n_decoded, one.most_new];
  const text = isPrompt ? `${whole(done)} of ${whole(all)} prompt tokens` : `${whole(done)} of at most ${whole(all)}`;
  return html`<span class="progress"><progress value=${done} max=${Math.max(1, all)} aria-label=${text}></progress>${text}</span>`;
}

function Running({ one }) {
  return html`<tr>
    <th scope="row">${one.id}</th>
    <td>${one.phase}${one.priority ? `, priority ${one.priority}` : ""}</td>
    <td><${Progress} one=${one} /></td>
    <td class="n">${whole(one.n_prompt_tokens)}</td>
    <td class="n">${whole(one.n_prompt_tokens_cached)}</td>
    <td class="n">${number(one.tokens_per_second)}</td>
    <td class="n">${milliseconds(one.queued_s * 1e3)}</td>
    <td class="n">${seconds(one.seconds)}</td>
    <td><button type="button" class="small" disabled=${leaving.value.has(one.id)} onClick=${() => cancel(one.id)}
      aria-label=${`cancel request ${one.id}`}>cancel</button></td>
  </tr>`;
}

const REASONS = { stop: "ended", length: "reached its limit", cancelled: "cancelled", error: "failed" };

function Ended({ one }) {
  return html`<tr class="ended">
    <th scope="row">${one.id}</th>
    <td>${REASONS[one.reason] ?? one.reason}</td>
    <td class="story">${whole(one.made)} tokens, the first after ${milliseconds(one.ttft_ms)}
      ${one.miss && html`<span class="miss">not from the cache: ${one.miss}</span>`}</td>
    <td class="n">${whole(one.prompt)}</td>
    <td class="n">${whole(one.cached)}</td>
    <td class="n">${number(one.tok_s)}</td>
    <td></td>
    <td class="n">${seconds(one.seconds)}</td>
    <td></td>
  </tr>`;
}

export function Queue() {
  const now = tick.value;
  const open = now?.queue ?? [];
  const ended = now?.ended_last ?? [];
  return html`<${Panel} id="queue" title="Queue" className="wide" note=${now ? `${now.running} running, ${now.waiting} waiting` : ""}>
    ${open.length + ended.length
      ? html`<div class="scroll" tabindex="0" role="region" aria-label="requests">
          <table class="queue">
            <thead><tr>
              ${["id", "phase", "progress"].map((one) => html`<th scope="col">${one}</th>`)}
              ${["prompt", "cached", "tok/s", "waited", "time"].map((one) => html`<th scope="col" class="n">${one}</th>`)}
              <th scope="col"><span class="hidden">cancel</span></th>
            </tr></thead>
            <tbody>
              ${open.map((one) => html`<${Running} key=${`o${one.id}`} one=${one} />`)}
              ${ended.map((one) => html`<${Ended} key=${`e${one.id}`} one=${one} />`)}
            </tbody>
          </table>
        </div>`
      : html`<p class="empty">No requests yet.</p>`}
    <p class="hidden" aria-live="polite">${said.value}</p>
  <//>`;
}
