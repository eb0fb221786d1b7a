// Pages of the cache: in use, shared, idle with known content, free; and prompt tokens that were found there.
import { html } from "../lib/html.js";
import { percent, whole } from "../lib/format.js";
import { tick } from "../lib/live.js";
import { Panel, Table } from "./frame.js";

const KINDS = [
  ["own", "in use by one request"], ["shared", "in use by several"], ["idle", "idle, content known"], ["free", "free"],
];

export function Cache() {
  const now = tick.value;
  if (!now) return html`<${Panel} id="kv" title="KV cache"><p class="empty">waiting</p><//>`;
  const { kv } = now;
  const counts = { own: kv.used - kv.shared, shared: kv.shared, idle: kv.idle, free: kv.free };
  const rows = [
    ["pages", "number", "share", "tokens"],
    ...KINDS.map(([kind, text]) => [
      html`<span class=${`swatch kv ${kind}`}></span>${text}`, whole(counts[kind]), percent(counts[kind] / kv.pages), whole(counts[kind] * kv.page),
    ]),
    ["all", whole(kv.pages), "", whole(kv.pages * kv.page)],
  ];
  const words = KINDS.map(([kind, text]) => `${counts[kind]} ${text}`).join(", ");
  return html`<${Panel} id="kv" title="KV cache" note=${`pages of ${kv.page} tokens`}>
    <div class="stackbar" role="img" aria-label=${`Of ${kv.pages} pages ${words}`}>
      ${KINDS.map(([kind]) => html`<span class=${`kv ${kind}`} style=${{ flexGrow: String(counts[kind]) }}></span>`)}
    </div>
    <${Table} rows=${rows} label="pages of the cache" className="numbers" />
    ${kv.windows ? html`<p class="hint">Layers over a window have ${whole(kv.windows)} pages of their own, ${whole(kv.windows_used)} in use.</p>` : null}
    <p class="hint">Prompts so far: ${whole(now.prompt)} tokens, ${whole(now.reused)} of them from the cache${now.prompt ? ` (${percent(now.reused / now.prompt)})` : ""}, ${whole(now.computed)} computed.</p>
  <//>`;
}
