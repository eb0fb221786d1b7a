// Asks for the server's key.
import { html, useEffect, useRef } from "./lib/html.js";
import { giveKey, keyWanted } from "./lib/api.js";

export function KeyDialog() {
  const place = useRef(null);
  const field = useRef(null);
  const why = keyWanted.value;
  useEffect(() => {
    if (why && !place.current.open) place.current.showModal();
    if (!why && place.current.open) place.current.close();
  }, [why]);
  const give = (event) => {
    event.preventDefault();
    const key = field.current.value.trim();
    field.current.value = "";
    if (key) giveKey(key);
  };
  return html`<dialog ref=${place} aria-labelledby="key-title" onCancel=${(event) => event.preventDefault()}>
    <form onSubmit=${give}>
      <h2 id="key-title">Key</h2>
      <p>${why} It was given to headrace serve with --api-key, and stays in this tab.</p>
      <label>key <input type="password" autocomplete="off" ref=${field} /></label>
      <button type="submit" class="main">go on</button>
    </form>
  </dialog>`;
}
