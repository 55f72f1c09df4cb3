// Buttons, fields and what follows a wait.

import { make } from "./elements.js";
import { describe } from "./explain.js";

/** @import { Attributes } from "./elements.js" */
/** @import { Progress } from "./traits.js" */

/** @type {Record<string, number>} */
const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

/**
 * A button that shows its sentence.
 *
 * @param {Element} parent
 * @param {string} label
 * @param {string} sentence
 * @param {(event: Event) => void} action
 * @param {Attributes} attributes
 */
export function button(parent, label, sentence, action, attributes = {}) {
  const element = describe(make("button", { type: "button", ...attributes }, parent, label), sentence);
  element.addEventListener("click", action);
  return element;
}

/**
 * The label of a control, to hold it.
 *
 * @type {(parent: Element, label: string) => HTMLLabelElement}
 */
export const labeled = (parent, label) => make("label", { class: "control" }, parent, label);

/**
 * A group of buttons with a name.
 *
 * @type {(parent: Element, name: string) => HTMLElement}
 */
export const group = (parent, name) => make("span", { class: "group", role: "group", "aria-label": name }, parent);

/**
 * A list to choose from. An option is its value and its text.
 *
 * @typedef {[string | number, string]} Option
 * @param {Element} parent
 * @param {string} label
 * @param {Option[]} options
 * @param {string | number | null} selected The value chosen at first.
 * @param {(value: string) => void} action
 */
export function choose(parent, label, options, selected, action) {
  const select = make("select", {}, labeled(parent, label));
  fillOptions(select, options, selected);
  select.addEventListener("change", () => action(select.value));
  return select;
}

/**
 * Gives a list its options.
 *
 * @type {(select: HTMLSelectElement, options: Option[], selected: string | number | null) => void}
 */
export function fillOptions(select, options, selected) {
  select.replaceChildren();
  for (const [value, text] of options) make("option", { value }, select, text).selected = value === selected;
}

/**
 * The arrow keys go from button to button of a row.
 *
 * @param {HTMLElement} row
 * @param {(target: HTMLButtonElement) => void} then
 */
export function onArrows(row, then = () => {}) {
  row.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    const buttons = [...row.querySelectorAll("button")].filter((button) => !button.hidden);
    const at = buttons.findIndex((button) => button === event.target);
    const target = buttons[(at + step + buttons.length) % buttons.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}

/**
 * The progress of something under way; of one item, no share is known until it is done.
 *
 * @type {(parent: Element, bar: Progress) => void}
 */
export function drawBar(parent, { words, done, total }) {
  const share = total !== null && total > 1 ? { max: total, value: done } : null;
  make("progress", { ...share, "aria-label": words }, parent);
  parent.append(words + (share ? `: ${done} of ${total}` : ""));
}

/**
 * A line of Python with a button that copies it.
 *
 * @type {(parent: Element) => HTMLElement}
 */
export function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent);
  const copy = button(parent, "Copy", "Copy the line of Python", async () => {
    await navigator.clipboard.writeText(line.textContent ?? "");
    copy.textContent = "Copied";
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 1200);
  });
  return line;
}

/**
 * A closed menu, whose word opens it.
 *
 * @type {(parent: Element, word: string) => HTMLElement}
 */
export function fold(parent, word) {
  const menu = make("details", { class: "fold" }, parent);
  make("summary", {}, menu, word);
  return make("div", {}, menu);
}
