// Answers that the kernel takes apart: a button that begins, how far it is, and a button that stops it.

import { button, drawBar, labeled } from "../controls.js";
import { focusIn, make } from "../elements.js";

/** @import { Attributes } from "../elements.js" */
/** @import { Ask, Explaining, Model } from "../traits.js" */

const STOP = "Give this answer up; the others stay";

/**
 * The buttons of one answer that can be taken apart.
 *
 * @param {Element} parent
 * @param {Attributes} look
 * @param {Ask | null} ask
 */
function drawButtons(parent, look, ask) {
  const begin = make("button", look, parent, "Take apart");
  const stop = button(parent, "Stop", STOP, () => ask?.("stop_explaining"));
  const said = make("span", { role: "status" }, parent);
  /** @type {(explaining: Explaining | undefined, isThis: (row: number | null | undefined) => boolean) => void} */
  function follow({ row, running = false, said: words = "", bar } = {}, isThis) {
    const isMine = isThis(row), hadFocus = focusIn(begin) === begin;
    begin.disabled = running;
    stop.hidden = !running || !isMine;
    if (hadFocus && !stop.hidden) stop.focus(); // a disabled button would lose it
    said.replaceChildren(...(isMine ? [words] : []));
    if (isMine && running && bar) drawBar(make("div", {}, said), bar);
  }
  return { begin, follow };
}

/**
 * The button of a row of answers.
 *
 * @type {(parent: Element, row: number, model: Model, ask: Ask | null) => () => void}
 */
export function drawTakeApart(parent, row, model, ask) {
  const { begin, follow } = drawButtons(make("div", {}, parent), { type: "button", class: "primary" }, ask);
  begin.addEventListener("click", () => ask?.("explain_row", { row }));
  const now = () => follow(model.get("explaining"), (other) => other === row);
  now();
  return now;
}

/**
 * A form for a request of the reader's own.
 *
 * @type {(parent: Element, model: Model, ask: Ask | null) => () => void}
 */
export function drawRequestForm(parent, model, ask) {
  const form = make("form", { class: "bar own" }, parent);
  /** @type {(label: string) => HTMLInputElement} */
  const field = (label) => make("input", { type: "text" }, labeled(form, label));
  const request = field("A request of your own"), answer = field("Its answer (default: the adapter's)");
  const { follow } = drawButtons(form, { type: "submit" }, ask);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!request.value.trim()) return;
    ask?.("explain", { prompt: request.value, answer: answer.value.trim() ? answer.value : null });
  });
  const now = () => follow(model.get("explaining"), (row) => row === null);
  now();
  return now;
}
