// The panel "Side effects": other texts, the worst first, on the colors of what the adapter changed.

import { isDark } from "../colors.js";
import { choose } from "../controls.js";
import { make } from "../elements.js";
import { mean } from "../modules.js";
import { drawRamp, drawStrip } from "../strip.js";
import { probability, quoted, signedNumber } from "../text.js";

/** @import { Option } from "../controls.js" */
/** @import { Token } from "../strip.js" */

const OPENED = 6; // texts that are shown before one asks for more
const RAMP = "nats that a token gained or lost; beyond are 2\u00a0% of the tokens; faint: not measured";

/**
 * A text of a set: its tokens, the positions that were measured, their log-probability under the base, and by how much
 * it rose.
 *
 * @typedef {{set: string, tokens: string[], positions: number[], base: number[], rise: number[]}} Sample
 */

/** @typedef {{sets: string[], samples: Sample[], of: number, choice?: {set: string, all: boolean}}} Part */

/** @type {(parent: Element, part: Part) => void} */
export function effectsPart(parent, part) {
  const choice = (part.choice ??= { set: "", all: false });
  const root = make("div", { class: "strips" }, parent), bar = make("div", { class: "bar" }, root);
  /** @type {Option[]} */
  const sets = ["", ...part.sets].map((name) => [name, name || "all sets"]);
  choose(bar, "Texts", sets, choice.set, (set) => {
    Object.assign(choice, { set, all: false });
    draw();
  });
  const list = make("div", {}, root);
  const sizes = part.samples.flatMap(({ rise }) => rise.map(Math.abs)).sort((a, b) => a - b);
  const most = Math.max(sizes[Math.floor(0.98 * sizes.length)], 1e-6);
  function draw() {
    const found = part.samples.filter(({ set }) => !choice.set || set === choice.set);
    const shown = choice.all ? found : found.slice(0, OPENED), hidden = found.length - shown.length;
    list.replaceChildren();
    const dark = isDark(root);
    drawRamp(list, most, RAMP, dark);
    for (const sample of shown) drawSample(list, sample, most, dark);
    const foot = make("div", { class: "key" }, list, count(shown, found, part));
    if (!hidden) return;
    make("button", { type: "button" }, foot, `Show ${hidden} more`).addEventListener("click", () => {
      choice.all = true;
      draw();
    });
  }
  draw();
}

/** @type {(list: Element, sample: Sample, most: number, dark: boolean) => void} */
function drawSample(list, { set, tokens, positions, base, rise }, most, dark) {
  const line = make("div", { class: "sample" }, list),
    measured = new Map(positions.map((position, k) => [position, k]));
  make("span", { class: "set" }, line, `${set} ${signedNumber(-mean(rise))}`).title =
    "change of the loss, nats per token";
  /** @type {Token[]} */
  const drawn = tokens.map((text, position) => {
    const k = measured.get(position), ends = text.endsWith("\n");
    if (k === undefined) return { text, share: 0, look: ["faint"], ends };
    const from = `from ${probability(base[k])} to ${probability(base[k] + rise[k])}`;
    return { text, share: rise[k] / most, title: `${quoted(text)}: ${signedNumber(rise[k])} nats, ${from}`, ends };
  });
  drawStrip(line, drawn, dark);
}

/** @type {(shown: Sample[], found: Sample[], part: Part) => string} */
function count(shown, found, { of, samples }) {
  const rest = of > samples.length ? ` Of the ${of} texts, the worst ${samples.length} are here.` : "";
  const words = "texts, the worst first; the number is the change of the loss, nats per token.";
  return `${shown.length} of ${found.length} ${words}${rest}`;
}
