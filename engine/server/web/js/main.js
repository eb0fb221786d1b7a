// The page: the chat beside what the engine does.
import { html, render, signal } from "./lib/html.js";
import { colours } from "./lib/chart.js";
import { number, seconds, whole } from "./lib/format.js";
import { connection, hello, start as startLive, tick } from "./lib/live.js";
import { Chat } from "./chat/chat.js";
import { start as startSession } from "./chat/session.js";
import { KeyDialog } from "./key.js";
import { Cache } from "./panels/kv.js";
import { Experts } from "./panels/experts.js";
import { Hot } from "./panels/hot.js";
import { Now } from "./panels/now.js";
import { Placement } from "./panels/placement.js";
import { Queue } from "./panels/queue.js";
import { River } from "./panels/river.js";
import { Truth } from "./panels/truth.js";

const KEPT = "headrace-theme";
const theme = signal(localStorage.getItem(KEPT) ?? "auto");

function wear(name) {
  theme.value = name;
  localStorage.setItem(KEPT, name);
  document.documentElement.dataset.theme = name;
  colours.value += 1;
}

function Top() {
  const facts = hello.value;
  const { state, text } = connection.value;
  const now = tick.value;
  return html`<header class="top">
    <h1>headrace</h1>
    ${facts && html`<span class="model">${facts.model}</span>
      <span class="note facts">${facts.family}, ${facts.layers} layers${facts.experts ? `, ${facts.experts} experts, top ${facts.top_k}` : ""}, context ${whole(facts.context)}</span>`}
    <span class="spring"></span>
    ${now && html`<span class="note up">up ${seconds(now.up_s)}</span><span class="speed">${number(now.decode_tok_s)} tok/s</span>`}
    <span class=${`state ${state}`} role="status">${text}</span>
    <label class="choice"><span class="hidden">colours</span>
      <select value=${theme.value} onChange=${(event) => wear(event.currentTarget.value)}>
        ${["auto", "light", "dark"].map((one) => html`<option value=${one} selected=${one === theme.value}>${one}</option>`)}
      </select>
    </label>
  </header>`;
}

function Page() {
  return html`
    <a class="skip" href="#chat">to the chat</a>
    <a class="skip" href="#now">to the engine</a>
    <${Top} />
    <main>
      <${Chat} />
      <div class="panels">
        <${Now} /><${River} /><${Truth} /><${Queue} />
        <div class="pile"><${Cache} /><${Experts} /></div>
        <${Placement} />
        <${Hot} />
      </div>
    </main>
    <${KeyDialog} />
  `;
}

wear(theme.value);
render(html`<${Page} />`, document.getElementById("page"));
startSession();
startLive();
