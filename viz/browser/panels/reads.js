// The panel "Reads": both ends of each direction of the selected module, kinds next to each other, and whole samples.

import { isDark, largest } from "../colors.js";
import { choose, group } from "../controls.js";
import { focusIn, make } from "../elements.js";
import { placeOf, sum } from "../modules.js";
import { coloredToken, drawRamp, drawStrip } from "../strip.js";
import { MINUS, percent, quoted, signedNumber, visible, whole } from "../text.js";
import { followKernel } from "./follow_kernel.js";
import { ends, readByExpert, readTokens, unpack } from "./readings.js";

/** @import { Token } from "../strip.js" */
/** @import { About, Traits } from "../traits.js" */
/** @import { Context } from "./panels.js" */
/** @import { Reading, Side, Tokens, Values } from "./readings.js" */

const LISTED = 5; // tokens of an end
const WINDOW = 40; // tokens on both sides of the peak of a sample that is not shown whole
const STRONGEST = 8, DRAWN_SAMPLES = 4;
const EVENTS = ["change:selected", "change:reading", "change:current"];
/** @type {Record<string, [number, number]>} */
const MOVES = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
/** @type {[boolean, string][]} */
const VALUES = [[false, "z: read"], [true, "z \u00d7 need: read and needed"]];
const EXPERTS_UNKNOWN =
  "What these experts read was not looked at: tlora.direction_activations reads it, with subspaces of them.";
const SINK = "The first token of each sample dominates this module (an attention sink): " +
  "direction_activations(..., first_token=False) leaves it out.";

/**
 * What the panel is drawn from. By module: which side it reads, and by kind its share on constant tokens and how well
 * two halves of the samples agree, and the `words` of the first direction for the card. Of a parameter its `experts`,
 * each with the tokens that it reads; a page has the first. A page holds `samples` of the samples that were read.
 *
 * @typedef {object} Part
 * @property {string[]} kinds
 * @property {string[]} meanings
 * @property {string[]} parts
 * @property {Record<string, Side>} sides
 * @property {(string | null)[]} side
 * @property {number[][][]} experts
 * @property {(number | null)[][]} constant
 * @property {(number | null)[][]} agreement
 * @property {string[][]} words
 * @property {number[]} sinks Modules in which the first token of each sample dominates.
 * @property {boolean} need
 * @property {number} samples
 * @property {number} of
 */

/**
 * The panel while it is drawn, with the expert that is `chosen` of each parameter: the direction `d` of kind `n` whose samples are open, and the samples that are turned:
 * whole if they were not, and the other way round.
 *
 * @typedef {{root: HTMLElement, part: Part, about: About, sides: Record<string, Tokens>, values: Values,
 *   open: {d: number, n: number} | null, isNeed: boolean, whole: Set<number>, draw: () => void,
 *   reading: Partial<Reading>, chosen: Record<number, number>, follow: () => void}} Panel
 */

/**
 * A page has the values of all modules.
 *
 * @type {{read: (args: {module: number}, page: {readings?: Partial<Reading>[]}) => Partial<Traits>}}
 */
export const readsAnswers = { read: ({ module }, page) => ({ reading: page.readings?.[module] }) };

/** @type {(parent: Element, part: Part, context: Context) => void} */
export function readsPart(parent, part, { about, model: known, ask }) {
  if (!known) return;
  const model = known;
  const root = make("div", { class: "reads strips" }, parent);
  const sides = Object.fromEntries(Object.entries(part.sides).map(([name, side]) => [name, readTokens(side)]));
  const values = unpack({ module: -1 }, false); // of no module yet
  /** @type {Panel} */
  const panel = {
    ...{ root, part, about, sides, values, open: null, isNeed: false, whole: new Set(), draw, follow },
    ...{ reading: {}, chosen: {} },
  };
  const selected = () => model.get("selected").at(-1) ?? 0;
  function draw() {
    const focused = focusIn(root), key = focused && root.contains(focused) ? focused.getAttribute("data-key") : null;
    root.replaceChildren();
    const { ranks, experts } = model.get("current"), k = selected();
    drawModule(panel, k, experts?.[k][expertOf(panel, k) ?? -1] ?? ranks[k]);
    if (key) focusOn(root, `[data-key="${key}"]`, { preventScroll: true });
  }
  function follow() { // the selected module, or its values, have changed
    const { module, ...reading } = model.get("reading") ?? {}, k = selected(), expert = expertOf(panel, k);
    if (module !== k || reading.expert !== expert) return ask?.("read", { module: k, expert }, "read");
    if (panel.values.module !== k || panel.values.expert !== expert) {
      const count = sides[part.side[k] ?? ""]?.group.length, values = unpack({ module, ...reading }, part.need, count);
      Object.assign(panel, { values, reading, open: null });
    }
    draw();
  }
  followKernel(root, model, Object.fromEntries(EVENTS.map((event) => [event, follow])));
  root.addEventListener("keydown", (event) => moveFocus(root, event));
  follow();
}

/**
 * The expert whose reads are shown: the one that was chosen, or that with the most tokens; none of a linear layer.
 *
 * @type {(panel: Panel, k: number) => number | undefined}
 */
const expertOf = ({ part, chosen }, k) => chosen[k] ?? part.experts[k]?.[0]?.[0];

/** @type {(root: Element, selector: string, options?: FocusOptions) => void} */
const focusOn = (root, selector, options) =>
  /** @type {HTMLElement | null} */ (root.querySelector(selector))?.focus(options);

/**
 * Arrows move between the directions and the kinds.
 *
 * @type {(root: Element, event: KeyboardEvent) => void}
 */
function moveFocus(root, event) {
  const move = MOVES[event.key], { row, column } = /** @type {HTMLElement} */ (event.target).dataset;
  if (!move || column === undefined) return;
  focusOn(root, `[data-row="${Number(row) + move[0]}"][data-column="${Number(column) + move[1]}"]`);
  event.preventDefault();
}

/**
 * Values of all tokens along a direction; with need, times how much each token needs the module.
 *
 * @type {(panel: Panel, kind: number, direction: number) => number[]}
 */
function valuesOf({ values, isNeed }, kind, direction) {
  const z = values.row(kind * values.directions + direction);
  const { need } = values;
  return isNeed && need ? z.map((v, i) => v * need[i]) : z;
}

/** @type {(panel: Panel) => string} */
const valueName = ({ isNeed }) => (isNeed ? "z \u00d7 need" : "z");

/** @type {(panel: Panel, k: number, rank: number) => void} */
function drawModule(panel, k, rank) {
  const { root, part, about, sides, values } = panel, side = sides[part.side[k] ?? ""], place = placeOf(about, k);
  const bar = make("div", { class: "bar" }, root);
  make("h3", {}, bar, place);
  if (!side) {
    make("p", {}, root, about.experts[k] > 1 ? EXPERTS_UNKNOWN : "This module reads positions, not tokens.");
    return;
  }
  const tokens = readByExpert(side, values.routed);
  if (part.experts[k].length) drawExperts(panel, bar, k);
  if (part.need) drawChoice(panel, bar);
  const key = make("span", { class: "key" }, bar);
  part.parts.forEach((name, n) => {
    const entry = make("span", {}, key);
    make("span", { class: `part-sign p${n}` }, entry);
    entry.append(name);
  });
  make("p", {}, root, describeModule(panel, k));
  const scroll = make("div", { class: "scroll" }, root), label = `Tokens at both ends of the directions of ${place}`;
  drawDirections(panel, make("table", { "aria-label": label }, scroll), tokens, rank);
}

/** @type {(panel: Panel, bar: Element, k: number) => void} */
function drawExperts(panel, bar, k) {
  /** @type {import("../controls.js").Option[]} */
  const options = panel.part.experts[k].map((
    [expert, count],
  ) => [expert, `${expert}: ${whole(count)} ${count === 1 ? "token" : "tokens"}`]);
  choose(bar, "Expert", options, expertOf(panel, k) ?? null, (value) => {
    panel.chosen[k] = Number(value);
    panel.follow();
  });
}

/** @type {(panel: Panel, bar: Element) => void} */
function drawChoice(panel, bar) {
  const box = group(bar, "Values");
  for (const [isNeed, label] of VALUES) {
    const attributes = { "aria-pressed": panel.isNeed === isNeed, "data-key": `need ${isNeed}` };
    make("button", { type: "button", ...attributes }, box, label).addEventListener("click", () => {
      panel.isNeed = isNeed;
      panel.draw();
    });
  }
}

/** @type {(panel: Panel, k: number) => string} */
function describeModule({ part, reading }, k) {
  /** @type {(value: number | null) => string} */
  const share = (value) => (value === null ? "\u2013" : percent(value));
  /** @type {(shares: (number | null)[]) => string} */
  const byKind = (shares) => part.kinds.map((kind, n) => `${kind} ${share(shares[n])}`).join(", ");
  const samples = part.samples < part.of
    ? `${part.samples} of the ${part.of} samples that were read are in this page.`
    : `${part.of} samples.`;
  const constant = reading.constant ?? part.constant[k], agreement = reading.agreement ?? part.agreement[k];
  return `All directions together, on constant tokens: ${byKind(constant)} of z\u00b2. ` +
    `The top tokens of two halves of the samples agree: ${byKind(agreement)}. ` +
    `${samples}${part.sinks.includes(k) ? ` ${SINK}` : ""}`;
}

/** @type {(panel: Panel, table: Element, tokens: Tokens, rank: number) => void} */
function drawDirections(panel, table, tokens, rank) {
  const { kinds, meanings } = panel.part, whole = { colspan: kinds.length + 1 };
  const head = make("tr", {}, make("thead", {}, table)), body = make("tbody", {}, table);
  make("th", { scope: "col" }, head, "direction");
  kinds.forEach((kind, n) => {
    make("th", { scope: "col", class: "words" }, head, meanings[n] ? `${kind}: ${meanings[n]}` : kind);
  });
  for (let d = 0; d < panel.values.directions; d++) {
    if (d === rank) {
      const words = `rank ${rank}: directions above are kept, those below are cut off`;
      make("td", whole, make("tr", { class: "cut" }, body), words);
    }
    const row = make("tr", {}, body);
    make("th", { scope: "row" }, row, d + 1);
    kinds.forEach((_, n) => drawEnds(panel, make("td", { class: "words" }, row), n, d, tokens));
    if (panel.open?.d !== d) continue;
    const cell = make("td", { ...whole, class: "words" }, make("tr", { class: "samples" }, body));
    drawSamples(panel, cell, panel.open.n, d, tokens);
  }
}

/**
 * Both ends of a direction, on a button that opens its samples.
 *
 * @type {(panel: Panel, cell: Element, n: number, d: number, tokens: Tokens) => void}
 */
function drawEnds(panel, cell, n, d, tokens) {
  const values = valuesOf(panel, n, d), isOpen = panel.open?.d === d && panel.open.n === n;
  const at = { "data-key": `${d} ${n}`, "data-row": d, "data-column": n };
  const button = make("button", { type: "button", class: "ends", "aria-expanded": isOpen, ...at }, cell);
  const said = [1, -1].map((sign) => drawEnd(panel, button, values, sign, tokens));
  const squares = sum(values.map((v) => v * v));
  const constant = sum(values.map((v, i) => (tokens.part[i] === 0 ? v * v : 0)));
  const words = `${percent(constant / squares)} on constant tokens`;
  make("span", { class: "times", "aria-hidden": "true" }, button, words);
  button.setAttribute("aria-label", `${panel.part.kinds[n]}, direction ${d + 1}: ${said.join("; ")}`);
  button.addEventListener("click", () => {
    Object.assign(panel, { open: isOpen ? null : { d, n }, whole: new Set() });
    panel.draw();
  });
}

/**
 * One end as a line of tokens; returns it in words.
 *
 * @type {(panel: Panel, parent: Element, values: number[], sign: number, tokens: Tokens) => string}
 */
function drawEnd({ root, part }, parent, values, sign, tokens) {
  const found = ends(values, sign, tokens), listed = found.slice(0, LISTED), most = largest(values);
  const line = make("span", { class: "line", "aria-hidden": "true" }, parent), dark = isDark(root);
  make("b", {}, line, sign > 0 ? "+" : MINUS);
  for (const { at, hits, all } of listed) {
    const kind = tokens.part[at], times = `${hits} of ${all} in the ${part.parts[kind]} part`;
    const title = `${quoted(tokens.text(at))}: ${times}, up to ${signedNumber(values[at])}`;
    const chip = make("span", { class: `chip p${kind}`, title }, line);
    make("span", { class: "ctx" }, chip, visible(tokens.before(at, 2)));
    coloredToken(chip, tokens.text(at), values[at] / most, dark);
    make("span", { class: "times" }, chip, `\u00d7${hits}`);
  }
  if (found.length > LISTED) make("span", { class: "times" }, line, `+ ${found.length - LISTED} more`);
  if (!found.length) make("span", { class: "times" }, line, "nothing beyond a fifth of the other end");
  const names = listed.map(({ at }) => quoted(tokens.text(at).trim() || tokens.text(at)));
  return `${sign > 0 ? "high" : "low"} at ${names.join(", ") || "nothing"}`;
}

/** @type {(panel: Panel, cell: Element, n: number, d: number, tokens: Tokens) => void} */
function drawSamples(panel, cell, n, d, tokens) {
  const values = valuesOf(panel, n, d), most = largest(values), dark = isDark(panel.root);
  const what = `${valueName(panel)}, direction ${d + 1} of ${panel.part.kinds[n]}`;
  const gray = panel.values.routed ? "; gray: not routed to this expert" : "";
  drawRamp(cell, most, `${what}; narrow: constant tokens${gray}; click a number for the whole sample`, dark);
  const peaks = tokens.spans.map(([start, end]) => largest(values.slice(start, end)));
  const order = [...peaks.keys()].sort((a, b) => peaks[b] - peaks[a]), rest = shuffled(order.slice(STRONGEST));
  const isDrawn = rest.length > DRAWN_SAMPLES;
  const shown = isDrawn ? [...order.slice(0, STRONGEST), ...rest.slice(0, DRAWN_SAMPLES)] : order;
  shown.forEach((s, i) => {
    if (i === STRONGEST && isDrawn) {
      make("div", { class: "key" }, cell, `${DRAWN_SAMPLES} of the other ${rest.length} samples, drawn at random`);
    }
    const isWhole = panel.whole.has(s) !== (i === 0); // the strongest is shown whole
    const line = make("div", { class: "sample" }, cell);
    drawPeak(panel, line, s, peaks[s].toFixed(1), isWhole);
    drawStrip(line, sampleTokens(panel, s, values, most, tokens, isWhole), dark);
  });
}

/**
 * Samples in an order that does not follow their values, the same each time.
 *
 * @type {(samples: number[]) => number[]}
 */
const shuffled = (samples) => samples.sort((a, b) => ((a * 7919 + 13) % 101) - ((b * 7919 + 13) % 101));

/** @type {(panel: Panel, line: Element, s: number, peak: string, isWhole: boolean) => void} */
function drawPeak(panel, line, s, peak, isWhole) {
  const title = "largest value of the sample; click for the whole sample";
  const attributes = { "aria-expanded": isWhole, "data-key": `sample ${s}`, title };
  const label = `sample ${s + 1}, up to ${peak}`;
  make("button", { type: "button", ...attributes, "aria-label": label }, line, peak).addEventListener("click", () => {
    panel.whole[panel.whole.has(s) ? "delete" : "add"](s);
    panel.draw();
  });
}

/**
 * The tokens of a sample around its peak, or all.
 *
 * @type {(panel: Panel, s: number, values: number[], most: number, tokens: Tokens, isWhole: boolean) => (string |
 *   Token)[]}
 */
function sampleTokens(panel, s, values, most, tokens, isWhole) {
  const [start, end] = tokens.spans[s], need = panel.isNeed ? null : panel.values.need;
  /** @type {(string | Token)[]} */
  const strip = [];
  let peak = start;
  for (let i = start; i < end; i++) if (Math.abs(values[i]) > Math.abs(values[peak])) peak = i;
  for (let i = start; i < end; i++) {
    if (!isWhole && Math.abs(i - peak) > WINDOW) {
      if (Math.abs(i - peak) === WINDOW + 1) strip.push("\u2026");
      continue;
    }
    const text = tokens.text(i), value = `${valueName(panel)} ${signedNumber(values[i])}`;
    const title = `${quoted(text)} ${value}${need ? `, need ${need[i].toFixed(2)}` : ""}, ` +
      panel.part.parts[tokens.part[i]];
    const narrow = !isWhole && i !== peak && tokens.part[i] === 0, look = i === peak ? ["peak"] : [];
    if (panel.values.routed && !panel.values.routed.has(i)) {
      strip.push({ text, share: 0, title: `${quoted(text)}: not routed to this expert`, narrow, look: ["unread"] });
      continue;
    }
    strip.push({ text, share: values[i] / most, title, narrow, look, ends: isWhole && text.endsWith("\n") });
  }
  return strip;
}
