// Text in a frame, with a button that copies it.
import { html, useState } from "./html.js";

export function CopyButton({ text, what }) {
  const [said, say] = useState("copy");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("copied");
    } catch {
      say("not allowed");
    }
    setTimeout(() => say("copy"), 1500);
  };
  return html`<button type="button" class="small" onClick=${copy} aria-label=${`copy ${what}`}>${said}</button>`;
}

export function CodeBlock({ text, language }) {
  const name = language || "code";
  return html`<figure class="code">
    <figcaption><span>${name}</span><${CopyButton} text=${text} what=${name} /></figcaption>
    <pre tabindex="0" role="region" aria-label=${name}><code>${text}</code></pre>
  </figure>`;
}
