import GLOSSARY from "./glossary.json" with { type: "json" };
import { make } from "./elements.js";

// What has a sentence shows it when the pointer is on it or the keyboard at it: words of the glossary, and buttons.
export function describe(element, sentence) {
  if (!sentence) return element;
  element.setAttribute("aria-description", sentence);
  if (!["BUTTON", "LABEL", "SUMMARY"].includes(element.tagName) && !element.hasAttribute("tabindex")) {
    element.setAttribute("tabindex", 0);
  }
  return element;
}

export const explained = (element, words = element.textContent) => describe(element, GLOSSARY[words.toLowerCase()]);
export function explainer(root) { // one box for all sentences of a widget
  const box = make("div", { class: "tip term", "aria-hidden": "true" }, root);
  const hide = () => {
    box.style.display = "none";
  };
  function show(event) {
    const word = event.target.closest?.("[aria-description]");
    if (!word) return hide();
    box.textContent = word.getAttribute("aria-description");
    box.style.display = "block";
    const frame = root.getBoundingClientRect(), at = word.getBoundingClientRect(), below = at.bottom - frame.top + 4;
    box.style.left = `${Math.max(0, Math.min(at.left - frame.left, frame.width - box.offsetWidth - 4))}px`;
    box.style.top = `${below}px`;
  }
  for (const event of ["pointerover", "focusin"]) root.addEventListener(event, show);
  for (const event of ["pointerleave", "focusout", "click"]) root.addEventListener(event, hide);
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
}
