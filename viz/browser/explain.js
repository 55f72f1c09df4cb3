// What has a sentence shows it when the pointer is on it or the keyboard at it: words of the glossary, and buttons.

import GLOSSARY from "./glossary.json" with { type: "json" };
import { make } from "./elements.js";

/** @type {Record<string, string>} */
const SENTENCES = GLOSSARY;

/**
 * Gives an element its sentence, and makes it reachable by Tab.
 *
 * @template {Element} T
 * @param {T} element
 * @param {string | undefined} sentence
 */
export function describe(element, sentence) {
  if (!sentence) return element;
  element.setAttribute("aria-description", sentence);
  const isReachable = ["BUTTON", "LABEL", "SUMMARY"].includes(element.tagName) || element.hasAttribute("tabindex");
  if (!isReachable) element.setAttribute("tabindex", "0");
  return element;
}

/**
 * Gives an element the glossary's sentence for its words, if there is one.
 *
 * @template {Element} T
 * @param {T} element
 * @param {string} words
 */
export function explained(element, words = element.textContent ?? "") {
  return describe(element, SENTENCES[words.toLowerCase()]);
}

/**
 * One box for all sentences of a widget.
 *
 * @type {(root: HTMLElement) => void}
 */
export function explainer(root) {
  const box = make("div", { class: "tip term", "aria-hidden": "true" }, root);
  const hide = () => {
    box.style.display = "none";
  };
  /** @type {(event: Event) => void} */
  function show(event) {
    const word = event.target instanceof Element ? event.target.closest("[aria-description]") : null;
    if (!word) return hide();
    box.textContent = word.getAttribute("aria-description");
    box.style.display = "block";
    const frame = root.getBoundingClientRect(), at = word.getBoundingClientRect();
    box.style.left = `${Math.max(0, Math.min(at.left - frame.left, frame.width - box.offsetWidth - 4))}px`;
    box.style.top = `${at.bottom - frame.top + 4}px`;
  }
  for (const event of ["pointerover", "focusin"]) root.addEventListener(event, show);
  for (const event of ["pointerleave", "focusout", "click"]) root.addEventListener(event, hide);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
}
