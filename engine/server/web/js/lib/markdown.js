// Markdown of a model, which is a stranger: tags in it are text, images are links, and what becomes HTML goes through
// DOMPurify with a short list of tags. The page's policy stops what would still get through.
import { Lexer, Parser, Renderer } from "marked";
import { html, useLayoutEffect, useMemo, useRef } from "./html.js";
import { CodeBlock } from "./code.js";

const TAGS = [
  "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "del",
  "a", "table", "thead", "tbody", "tr", "th", "td",
];
const RULES = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["href", "title", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (one) => escapes[one]);

const renderer = new Renderer();
renderer.html = ({ text }) => escape(text);
renderer.image = ({ href, text }) => `[image${text ? `: ${escape(text)}` : ""}] <a href="${escape(href)}">${escape(href)}</a>`;
renderer.checkbox = ({ checked }) => (checked ? "[x] " : "[ ] ");
const SETTINGS = { gfm: true, breaks: true, renderer };

let isReady = false;

/** HTML of Markdown that may be shown: trusted by the browser where it knows of trust, else text. */
export function sanitized(source) {
  const purify = globalThis.DOMPurify;
  if (!isReady) {
    purify.addHook("afterSanitizeAttributes", (node) => {
      if (node.tagName !== "A") return;
      node.setAttribute("rel", "noopener noreferrer nofollow");
      node.setAttribute("target", "_blank");
    });
    isReady = true;
  }
  return purify.sanitize(source, RULES);
}

/** Blocks of a text: code by itself, which has a button, the rest as HTML. */
export function blocks(text) {
  const lexer = new Lexer(SETTINGS);
  const tokens = lexer.lex(text);
  return tokens
    .filter((one) => one.type !== "space")
    .map((one) =>
      one.type === "code"
        ? { kind: "code", language: (one.lang ?? "").split(/\s/)[0], text: one.text }
        : { kind: "html", source: Parser.parse([one], SETTINGS) },
    );
}

function Html({ source }) {
  const place = useRef(null);
  useLayoutEffect(() => {
    place.current.innerHTML = sanitized(source);
  }, [source]);
  return html`<div ref=${place}></div>`;
}

/** A text of a model. What has not changed since the last piece is not made anew. */
export function Markdown({ text }) {
  const found = useMemo(() => blocks(text), [text]);
  return html`<div class="markdown">
    ${found.map((one, i) =>
      one.kind === "code"
        ? html`<${CodeBlock} key=${i} text=${one.text} language=${one.language} />`
        : html`<${Html} key=${i} source=${one.source} />`,
    )}
  </div>`;
}
