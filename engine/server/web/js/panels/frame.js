// A panel: a heading, its choices, what it shows, and the same as a table.
import { html, useState } from "../lib/html.js";

/** table(): rows of cells, the first of them headings. className: of the section. */
export function Panel({ id, title, note, controls, table, className = "", children }) {
  const [isTable, show] = useState(false);
  return html`<section id=${id} class=${`panel ${className}`} aria-labelledby=${`${id}-title`}>
    <header>
      <h2 id=${`${id}-title`}>${title}</h2>
      ${note && html`<span class="note">${note}</span>`}
      <span class="spring"></span>
      ${controls}
      ${table &&
      html`<button type="button" class="small" aria-pressed=${isTable} aria-label=${`${title} as a table`}
        onClick=${() => show(!isTable)}>table</button>`}
    </header>
    ${isTable ? html`<${Table} rows=${table()} label=${title} />` : children}
  </section>`;
}

/** Rows of cells; the first row has the headings, the first cell of each other one its name. */
export function Table({ rows, label, className = "" }) {
  const [head, ...body] = rows;
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${`${label}, table`}>
    <table class=${className}>
      <thead><tr>${head.map((one) => html`<th scope="col">${one}</th>`)}</tr></thead>
      <tbody>
        ${body.map((row) => html`<tr>
          ${row.map((cell, i) => (i === 0 ? html`<th scope="row">${cell}</th>` : html`<td>${cell}</td>`))}
        </tr>`)}
      </tbody>
    </table>
  </div>`;
}

/** A choice of a few words. options: [value, text]. */
export function Choice({ label, value, options, onChange }) {
  return html`<label class="choice"><span class="hidden">${label}</span>
    <select value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
      ${options.map(([name, text]) => html`<option value=${name} selected=${name === value}>${text}</option>`)}
    </select>
  </label>`;
}
