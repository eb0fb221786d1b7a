// One message: text, reasoning folded, calls, what it cost, and what can be done with it.
import { html, useState } from "../lib/html.js";
import { CopyButton } from "../lib/code.js";
import { bytes, milliseconds, number, whole } from "../lib/format.js";
import { Markdown } from "../lib/markdown.js";
import { edit, giveResult, regenerate } from "./session.js";

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function Call({ call, result, isLast }) {
  const [text, write] = useState("");
  return html`<details class="call" open>
    <summary>call <code>${call.name}</code></summary>
    <pre tabindex="0" role="region" aria-label=${`arguments of ${call.name}`}><code>${pretty(call.arguments)}</code></pre>
    ${result !== undefined && html`<p class="result"><span>result</span></p><pre tabindex="0" role="region" aria-label=${`result of ${call.name}`}><code>${result}</code></pre>`}
    ${result === undefined && isLast && html`<form class="give" onSubmit=${(event) => {
      event.preventDefault();
      giveResult(call, text);
    }}>
      <label>its result <textarea rows="2" value=${text} onInput=${(event) => write(event.currentTarget.value)}></textarea></label>
      <button type="submit" class="small">give it to the model</button>
    </form>`}
  </details>`;
}

/** Tokens, speed, and the bytes behind them, on one line. */
function Cost({ message }) {
  const { usage, timings, ledger } = message;
  if (!usage && !timings) return null;
  const parts = [];
  if (usage) parts.push(`${whole(usage.completion_tokens)} tokens`);
  if (timings?.predicted_per_second) parts.push(`${number(timings.predicted_per_second)} tok/s`);
  if (timings) parts.push(`prompt ${whole(timings.prompt_n + timings.cache_n)} (${whole(timings.cache_n)} cached) in ${milliseconds(timings.prompt_ms)}`);
  const decode = ledger?.decode;
  if (decode) {
    const read = Object.values(decode.bytes).flatMap((one) => Object.values(one)).reduce((a, b) => a + b, 0);
    parts.push(`${bytes(read / decode.tokens)} a token`);
    const predicted = decode.predicted_ms === null ? "" : `, predicted ${number(decode.predicted_ms / decode.tokens)}`;
    parts.push(`${number(decode.measured_ms / decode.tokens)} ms a token${predicted}`);
  }
  return html`<p class="cost">${parts.join(" · ")}</p>`;
}

const FINISHES = { length: "ended at the limit of tokens", stopped: "stopped" };

function Answer({ message, at, results, isDraft, isLast }) {
  const { content, reasoning, calls = [], error, finish } = message;
  const isThinking = isDraft && reasoning && !content;
  return html`<article class="message assistant" aria-label="answer" aria-busy=${isDraft ? "true" : "false"}>
    ${reasoning && html`<details class="reasoning">
      <summary>${isThinking ? "reasoning …" : "reasoning"}<span class="note"> ${whole(reasoning.length)} characters</span></summary>
      <div class="plain">${reasoning}</div>
    </details>`}
    ${content && html`<${Markdown} text=${content} />`}
    ${isDraft && !content && !reasoning && html`<p class="waiting">waiting for the first token</p>`}
    ${calls.map((call) => html`<${Call} call=${call} result=${results.get(call.id)} isLast=${isLast && !isDraft} />`)}
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${FINISHES[finish] && html`<p class="note">${FINISHES[finish]}</p>`}
    <${Cost} message=${message} />
    ${!isDraft && html`<div class="tools">
      ${content && html`<${CopyButton} text=${content} what="answer" />`}
      <button type="button" class="small" onClick=${() => regenerate(at)}>regenerate</button>
    </div>`}
  </article>`;
}

function Asked({ message, at }) {
  const [text, write] = useState(null);
  if (text === null) {
    return html`<article class="message user" aria-label="you">
      <div class="plain">${message.content}</div>
      <div class="tools"><button type="button" class="small" onClick=${() => write(message.content)}>edit</button></div>
    </article>`;
  }
  const save = (event) => {
    event.preventDefault();
    write(null);
    edit(at, text);
  };
  return html`<article class="message user" aria-label="you">
    <form onSubmit=${save}>
      <textarea rows="4" aria-label="your message" value=${text} onInput=${(event) => write(event.currentTarget.value)}
        ref=${(place) => place && !place.dataset.seen && ((place.dataset.seen = "1"), place.focus())}
        onKeyDown=${(event) => event.key === "Escape" && write(null)}></textarea>
      <div class="tools">
        <button type="submit" class="small">send again</button>
        <button type="button" class="small" onClick=${() => write(null)}>leave it</button>
      </div>
    </form>
  </article>`;
}

export function Message({ message, at, results, isDraft = false, isLast = false }) {
  if (message.role === "tool") return null; // shown with its call
  return message.role === "user"
    ? html`<${Asked} message=${message} at=${at} />`
    : html`<${Answer} message=${message} at=${at} results=${results} isDraft=${isDraft} isLast=${isLast} />`;
}
