// The request and the answer: what each token gained, and its probability with what is switched off.

import { isDark, largest, tint } from "../../colors.js";
import { drawBar, onArrows } from "../../controls.js";
import { make, put } from "../../elements.js";
import { explained } from "../../explain.js";
import { plainToken } from "../../strip.js";
import { nats, probability, quoted, visible } from "../../text.js";
import { gains } from "./contributions.js";

/** @import { Panel } from "./attribution.js" */
/** @import { Answer } from "./contributions.js" */
/** @import { Progress } from "../../traits.js" */

export const MEASURES = ["log-probability", "log-odds"];
const WORDS = {
  gained: "gain of a token",
  base: "probability in the base",
  adapter: "probability with the adapter",
  now: "probability now",
  "now first": "first choice now",
};
/** What stands below each token; its word in the glossary is in `WORDS`. */
const ROWS = Object.keys(WORDS);

/** @typedef {ReturnType<typeof answerElements>} AnswerElements */

/** @typedef {ReturnType<typeof tint>} Tint */

/**
 * A button with a title.
 *
 * @type {(parent: Element, label: string, title: string, action: () => void) => HTMLButtonElement}
 */
export function press(parent, label, title, action) {
  const button = make("button", { type: "button", title }, parent, label);
  button.addEventListener("click", action);
  return button;
}

/**
 * The elements that the request and the answer are drawn into.
 *
 * @param {Element} root
 */
export function answerElements(root) {
  const request = make("div", { class: "request" }, root);
  const cards = make("div", { class: "answer", role: "group", "aria-label": "Tokens of the answer" }, root);
  onArrows(cards);
  return { request, cards };
}

/**
 * Draws the tokens of a sample, to be painted; a click chooses a token or the whole answer.
 *
 * @type {(drawn: AnswerElements, panel: Panel) => void}
 */
export function drawAnswer({ request, cards }, panel) {
  const { sample, choice } = panel, inAnswer = new Set(sample.positions);
  request.replaceChildren();
  cards.replaceChildren();
  sample.tokens.forEach((token, n) => {
    if (!inAnswer.has(n)) plainToken(request, token);
  });
  /** @type {(token: number | null) => void} */
  function chooseToken(token) {
    choice.token = token;
    panel.paint();
  }
  const names = make("div", { class: "card names" }, cards);
  press(names, "whole answer", "What the modules contributed to all of its tokens", () => chooseToken(null));
  for (const [name, word] of Object.entries(WORDS)) {
    explained(make("span", { class: `${name} head` }, names, name), word);
  }
  sample.positions.forEach((position, i) => {
    const card = make("div", { class: "card" }, cards);
    const token = press(card, visible(sample.tokens[position]), "", () => chooseToken(choice.token === i ? null : i));
    token.className = "token";
    for (const name of ROWS) make("span", { class: name }, card);
  });
}

/**
 * Paints the tokens: `now` is the answer without the changed modules, null if there are none, undefined if unknown.
 *
 * @type {(drawn: AnswerElements, panel: Panel, now: Answer | null | undefined) => void}
 */
export function paintAnswer({ cards }, panel, now) {
  const { root, choice } = panel, dark = isDark(root), rise = gains(panel, choice.measure), most = largest(rise);
  const [names, ...tokens] = cards.children;
  cards.classList.toggle("switched", now !== null);
  put(names.children[0], "aria-pressed", choice.token === null);
  tokens.forEach((card, i) => paintCard(card, panel, i, now, (value) => tint(value / most, dark)));
}

/**
 * @type {(card: Element, panel: Panel, i: number, now: Answer | null | undefined, colorOf: (value: number) =>
 *   Tint) => void}
 */
function paintCard(card, { sample, choice }, i, now, colorOf) {
  const [token, ...values] = /** @type {Iterable<HTMLElement>} */ (card.children);
  /** @type {(row: string) => HTMLElement} */
  const below = (row) => values[ROWS.indexOf(row)];
  const { measure } = choice, rise = sample.adapter[measure][i] - sample.base[measure][i];
  /** @type {(values: number[][]) => string} */
  const p = (values) => probability(values[0][i]);
  fill(token, colorOf(rise));
  put(token, "aria-pressed", choice.token === i);
  const [ofBase, ofAdapter] = sample.choices.map((choices) => quoted(choices[i]));
  const text = quoted(sample.tokens[sample.positions[i]]);
  token.title =
    `${text}: ${nats(rise)} nats of ${MEASURES[measure]}, from ${p(sample.base)} to ${p(sample.adapter)}; ` +
    `first choice of the base ${ofBase}, of the adapter ${ofAdapter}`;
  const after = below("now"), first = below("now first");
  below("gained").textContent = nats(rise);
  below("base").textContent = p(sample.base);
  below("adapter").textContent = p(sample.adapter);
  after.textContent = now === null ? "" : now ? p(now.values) : "\u2026";
  if (now) fill(after, colorOf(now.values[measure][i] - sample.adapter[measure][i]));
  else after.removeAttribute("style");
  const another = now && !now.unchanged[i] ? visible(now.choices?.[i] ?? "another") : "";
  first.textContent = another;
  first.title = another && `first choice: ${another}`;
}

/** @type {(element: HTMLElement, color: Tint) => void} */
function fill(element, color) {
  element.style.background = color.fill;
  element.style.color = color.ink;
}

/**
 * What base and adapter answer, and if there is a kernel what is answered now.
 *
 * @type {(parent: Element, panel: Panel, now: Answer | null | undefined) => void}
 */
export function writeAnswers(parent, { part, sample }, now) {
  parent.replaceChildren();
  const [base, adapter] = sample.generated;
  /** @type {[name: string, words: string | Progress | undefined][]} */
  const lines = [["base", base], ["adapter", adapter]];
  if (now && part.live) lines.push(["now", now.answer ?? now.bar ?? "\u2026"]);
  for (const [name, words] of lines) {
    if (words === undefined) continue;
    const line = make("div", { class: name }, parent, `${name} answers: `);
    if (typeof words === "string") make("code", {}, line, words);
    else drawBar(line, words); // it is being written
  }
}
