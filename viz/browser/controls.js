// Buttons, fields and what follows a wait.

import { make } from "./elements.js";
import { describe } from "./explain.js";

/**
 * A button that shows its sentence.
 *
 * @param {Element} parent
 * @param {string} label
 * @param {string} sentence
 * @param {(event: Event) => void} action
 * @param {Record<string, any>} attributes
 */
export function button(parent, label, sentence, action, attributes = {}) {
  const element = describe(make("button", { type: "button", ...attributes }, parent, label), sentence);
  element.addEventListener("click", action);
  return element;
}

/** The label of a control, to hold it. */
export const labeled = (parent, label) => make("label", { class: "control" }, parent, label);

/** A group of buttons with a name. */
export const group = (parent, name) => make("span", { class: "group", role: "group", "aria-label": name }, parent);

/**
 * A list to choose from. An option is its value and its text.
 *
 * @param {Element} parent
 * @param {string} label
 * @param {any[][]} options
 * @param {any} selected The value chosen at first.
 * @param {(value: string) => void} action
 */
export function choose(parent, label, options, selected, action) {
  const select = make("select", {}, labeled(parent, label));
  fillOptions(select, options, selected);
  select.addEventListener("change", () => action(select.value));
  return select;
}

/** Gives a list its options. */
export function fillOptions(select, options, selected) {
  select.replaceChildren();
  for (const [value, text] of options) make("option", { value }, select, text).selected = value === selected;
}

/** The arrow keys go from button to button of a row. */
export function onArrows(row, then = (_target) => {}) {
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const buttons = [...row.querySelectorAll("button")].filter((button) => !button.hidden);
    const target = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}

/** The progress of something under way; of one item, no share is known until it is done. */
export function drawBar(parent, { words, done, total }) {
  make("progress", { ...(total > 1 && { max: total, value: done }), "aria-label": words }, parent);
  parent.append(words + (total > 1 ? `: ${done} of ${total}` : ""));
}

/** A line of Python with a button that copies it. */
export function copyable(parent) {
  const line = make("code", { tabindex: 0 }, parent);
  const copy = button(parent, "Copy", "Copy the line of Python", async () => {
    await navigator.clipboard.writeText(line.textContent);
    copy.textContent = "Copied";
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 1200);
  });
  return line;
}
