// The races so far: the verdict of each, and of each arm its line of Python, parameters, loss and interval.

import { button } from "./controls.js";
import { make } from "./elements.js";
import { whole } from "./text.js";

/** @import { Comparison } from "./traits.js" */

const MOST = 4; // races that are listed before one asks for more
const SHOW = "Show this race above.";

/**
 * Draws the list, the last race first.
 *
 * @type {(parent: HTMLElement, races: Comparison[], shown: number | null, show: (number: number) => void) => void}
 */
export function drawRaces(parent, races, shown, show) {
  const key = JSON.stringify([races.length, shown]);
  if (parent.dataset.drawn === key) return;
  parent.dataset.drawn = key;
  parent.replaceChildren();
  if (!races.length) return;
  make("h3", {}, parent, `Races so far: ${races.length}`);
  const numbers = races.map((_, number) => number).reverse();
  drawEntries(parent, numbers.slice(0, MOST), races, shown, show);
  const rest = numbers.slice(MOST);
  if (!rest.length) return;
  const more = make("details", {}, parent);
  make("summary", {}, more, `${rest.length} earlier`);
  drawEntries(more, rest, races, shown, show);
}

/**
 * @type {(parent: Element, numbers: number[], races: Comparison[], shown: number | null,
 *   show: (number: number) => void) => void}
 */
function drawEntries(parent, numbers, races, shown, show) {
  const list = make("ol", { class: "races" }, parent);
  for (const number of numbers) {
    const { said = "", arms } = races[number], entry = make("li", {}, list);
    const head = make("div", { class: "verdict" }, entry);
    button(head, `Race ${number + 1}`, SHOW, () => show(number), { "aria-pressed": number === shown });
    head.append(said);
    Object.entries(arms).forEach(([name, { parameters, loss, interval, code }], i) => {
      const line = make("div", { class: `line arm${i}` }, entry);
      make("span", { class: "of" }, line, name);
      make("span", { class: "loss" }, line, loss?.toPrecision(3));
      make("span", { class: "interval" }, line, interval ?? "");
      make("span", {}, line, `${whole(parameters)} parameters`);
      make("code", { tabindex: 0 }, line, code);
    });
  }
}
