// What one moves: a slider with its number, also by dragging on a picture.

import { labeled } from "../controls.js";
import { make } from "../elements.js";

/** @typedef {{min: number, max: number, step: number, text?: (value: number) => string}} Range */
/** @typedef {{set: (value: number) => void, box: HTMLElement}} Slider `set` shows a value. */

/**
 * A slider with its value as text.
 *
 * @param {Element} parent
 * @param {string} label
 * @param {Range} range
 * @param {(value: number) => void} action
 * @returns {Slider}
 */
export function slider(parent, label, { min, max, step, text = String }, action) {
  const box = labeled(parent, label), input = make("input", { type: "range", min, max, step }, box);
  const output = make("output", {}, box);
  input.addEventListener("input", () => action(Number(input.value)));
  /** @type {Slider["set"]} */
  function set(value) {
    input.value = String(value);
    input.setAttribute("aria-valuetext", text(value));
    output.textContent = text(value);
  }
  return { set, box };
}

/**
 * Has a picture follow the pointer from the press on.
 *
 * @template T
 * @param {GlobalEventHandlers & Element} picture
 * @param {(event: PointerEvent) => T | null} grip What a press takes hold of, or null.
 * @param {(event: PointerEvent, held: T) => void} move
 */
export function onDrag(picture, grip, move) {
  /** @type {T | null} */
  let held = null;
  picture.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = grip(event);
    if (held === null) return;
    event.preventDefault(); // no selection of text
    picture.setPointerCapture?.(event.pointerId);
    move(event, held);
  });
  picture.addEventListener("pointermove", (event) => {
    if (held !== null) move(event, held);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    picture.addEventListener(end, () => {
      held = null;
    });
  }
}
