// The chat: conversations, messages, and the field to write in.
import { html, signal, useEffect, useLayoutEffect, useRef } from "../lib/html.js";
import { download } from "./export.js";
import { Message } from "./message.js";
import { Drawer } from "./sampling.js";
import { announced, begin, conversations, current, draft, remove, send, show, stop, titleOf } from "./session.js";

const isDrawn = signal(false);
const text = signal("");

function Bar() {
  const { id, messages } = current.value;
  const known = conversations.value.some((one) => one.id === id);
  const all = known ? conversations.value : [current.value, ...conversations.value];
  return html`<header>
    <h2 id="chat-title">Chat</h2>
    <label class="choice grow"><span class="hidden">conversation</span>
      <select value=${id} onChange=${(event) => show(event.currentTarget.value)}>
        ${all.map((one) => html`<option value=${one.id} selected=${one.id === id}>${titleOf(one)}</option>`)}
      </select>
    </label>
    <button type="button" class="small" onClick=${begin}>new</button>
    <button type="button" class="small" aria-expanded=${isDrawn.value} aria-controls="drawer"
      onClick=${() => (isDrawn.value = !isDrawn.value)}>settings</button>
    <details class="menu">
      <summary class="small" aria-label="more of this conversation">more</summary>
      <div>
        <button type="button" disabled=${!messages.length} onClick=${() => download(current.value, "md")}>export Markdown</button>
        <button type="button" disabled=${!messages.length} onClick=${() => download(current.value, "json")}>export JSON</button>
        <button type="button" disabled=${!known} onClick=${() => remove(id)}>delete</button>
      </div>
    </details>
  </header>`;
}

function Messages() {
  const { messages, id } = current.value;
  const growing = draft.value;
  void isDrawn.value; // the drawer takes room: what was at the end stays there
  const place = useRef(null);
  const sticks = useRef(true);
  useEffect(() => {
    sticks.current = true;
  }, [id, messages.length]);
  useLayoutEffect(() => {
    if (sticks.current) place.current.scrollTop = place.current.scrollHeight;
  });
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = place.current;
    sticks.current = scrollHeight - scrollTop - clientHeight < 40;
  };
  const results = new Map(messages.filter((one) => one.role === "tool").map((one) => [one.tool_call_id, one.content]));
  const lastAnswer = messages.findLastIndex((one) => one.role === "assistant");
  return html`<div class="messages" ref=${place} onScroll=${onScroll} tabindex="0" role="region" aria-label="messages">
    ${!messages.length && !growing && html`<p class="empty">Ask something. Conversations stay in this browser.</p>`}
    ${messages.map((one, i) => html`<${Message} key=${i} message=${one} at=${i} results=${results} isLast=${i === lastAnswer && !growing} />`)}
    ${growing && html`<${Message} key="draft" message=${growing} at=${messages.length} results=${results} isDraft=${true} />`}
  </div>`;
}

function Composer() {
  const isBusy = draft.value !== null;
  const go = (event) => {
    event?.preventDefault();
    if (isBusy || !text.value.trim()) return;
    const said = text.value;
    text.value = "";
    send(said);
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) go(event);
    if (event.key === "Escape" && isBusy) stop();
  };
  return html`<form class="composer" onSubmit=${go}>
    <textarea rows="2" aria-label="your message" placeholder="Message; Enter sends, Shift+Enter breaks the line" value=${text.value}
      onInput=${(event) => (text.value = event.currentTarget.value)} onKeyDown=${onKeyDown}></textarea>
    ${isBusy
      ? html`<button type="button" class="main" onClick=${stop}>stop</button>`
      : html`<button type="submit" class="main" disabled=${!text.value.trim()}>send</button>`}
  </form>`;
}

export function Chat() {
  return html`<section class="panel chat" aria-labelledby="chat-title" id="chat">
    <${Bar} />
    <div id="drawer">${isDrawn.value && html`<${Drawer} />`}</div>
    <${Messages} />
    <${Composer} />
    <p class="hidden" aria-live="polite">${announced.value}</p>
  </section>`;
}
