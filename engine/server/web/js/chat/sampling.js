// The drawer: how tokens are chosen, what the model is told first, what it may call.
import { html } from "../lib/html.js";
import { hello } from "../lib/live.js";
import { change, current } from "./session.js";

const FIELDS = [
  ["temperature", "temperature", 0, 5, 0.05], ["top_p", "top p", 0, 1, 0.01], ["top_k", "top k", 0, 1000, 1],
  ["min_p", "min p", 0, 1, 0.01], ["repetition_penalty", "repetition penalty", 0.5, 2, 0.01],
  ["max_tokens", "most tokens", 1, 1_000_000, 1], ["seed", "seed", 0, 2 ** 31, 1],
];
const EFFORTS = ["", "none", "minimal", "low", "medium", "high"];

function set(name, value) {
  const settings = { ...current.value.settings, [name]: value };
  if (value === "") delete settings[name];
  change({ settings });
}

export function Drawer() {
  const { settings, system } = current.value;
  const defaults = hello.value?.sampling ?? {};
  return html`<div class="drawer">
    <label class="block">system text
      <textarea rows="2" value=${system} onInput=${(event) => change({ system: event.currentTarget.value })}></textarea>
    </label>
    <div class="fields">
      ${FIELDS.map(([name, text, least, most, step]) => html`<label>${text}
        <input type="number" min=${least} max=${most} step=${step} value=${settings[name] ?? ""}
          placeholder=${defaults[name] ?? (name === "max_tokens" ? "what fits" : "any")}
          onInput=${(event) => set(name, event.currentTarget.value)} />
      </label>`)}
      <label>reasoning
        <select value=${settings.reasoning_effort ?? ""} onChange=${(event) => set("reasoning_effort", event.currentTarget.value)}>
          ${EFFORTS.map((one) => html`<option value=${one}>${one || "as the model does"}</option>`)}
        </select>
      </label>
    </div>
    <label class="block">stop at, one a line
      <textarea rows="1" value=${settings.stop ?? ""} onInput=${(event) => set("stop", event.currentTarget.value)}></textarea>
    </label>
    <label class="block">tools, JSON as in OpenAI's API
      <textarea rows="2" spellcheck="false" value=${settings.tools ?? ""} onInput=${(event) => set("tools", event.currentTarget.value)}></textarea>
    </label>
    <p class="hint">What is empty is as the model's own files say. It is kept with the conversation, in this browser.</p>
  </div>`;
}
