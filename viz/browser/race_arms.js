// Two arms as columns, and between them the curves of their training and the map of their differences.

import { lossCurves } from "./chart.js";
import { blend, BLUE, groundOf, isDark, largest, RED } from "./colors.js";
import { copyable, drawBar } from "./controls.js";
import { make, write } from "./elements.js";
import { explained } from "./explain.js";
import { cellGrid } from "./grid.js";
import { number, signed, whole } from "./text.js";

/** @import { Color } from "./colors.js" */
/** @import { GridCell } from "./traits.js" */
/** @import { About, Arm, Comparison, Training } from "./traits.js" */

const WIDEST = 520; // pixels of what is between the columns

/**
 * Draws what stays while two arms are trained, if it is not there already: what each is, and how they differ.
 *
 * @type {(parent: HTMLElement, comparison: Comparison, about: About, width: number) => void}
 */
export function drawArms(parent, comparison, about, width) {
  const entries = Object.entries(comparison.arms), codes = entries.map(([name, { code }]) => [name, code]);
  const key = JSON.stringify([codes, Boolean(comparison.said), isDark(parent), width]);
  if (parent.dataset.drawn === key) return;
  parent.dataset.drawn = key;
  parent.replaceChildren();
  if (!entries.length) return;
  const boxes = entries.map(([name, arm], i) => drawArm(name, i, arm)), between = make("div", { class: "between" });
  parent.append(boxes[0], between, boxes[1]); // first, for the colors of the page and the width
  make("div", { class: "curves" }, between);
  drawDifference(between, comparison, about, widthOf(between, width));
}

/**
 * The width of what is drawn in an element; before the page is laid out, at most that of the map.
 *
 * @type {(element: Element, width: number) => number}
 */
const widthOf = (element, width) => Math.max(280, Math.min(WIDEST, element.clientWidth || width));

/** @type {(name: string, i: number, arm: Arm) => Element} */
function drawArm(name, i, { headline, code, parameters }) {
  const box = make("div", { class: `arm arm${i}`, "data-arm": name });
  make("h3", {}, box, name);
  make("div", { class: "outcome" }, box);
  make("div", { class: "ranks" }, box, headline);
  const cost = make("div", { class: "cost" }, box, `${whole(parameters)} `);
  explained(make("span", {}, cost, "trained parameters"));
  make("div", { class: "spent" }, box);
  write(copyable(make("div", { class: "copied" }, box)), code);
  return box;
}

/**
 * The map of differences: red cells have more rank in the second arm, blue ones less. Its sentence is the first line of
 * the panel, unless that is a verdict.
 *
 * @type {(parent: Element, comparison: Comparison, about: About, width: number) => void}
 */
function drawDifference(parent, { arms, difference, said }, about, width) {
  const [[, before], [second, after]] = Object.entries(arms);
  const box = make("div", { class: "difference" }, parent), changes = after.ranks.map((r, k) => r - before.ranks[k]);
  if (said) make("div", {}, box, difference);
  if (!changes.some((change) => change)) return;
  const { rows, columns, row, column } = about, most = largest(changes), ground = groundOf(isDark(parent));
  /** @type {(change: number | null) => Color} */
  const fill = (change) => blend(ground, (change ?? 0) > 0 ? RED : BLUE, (change ?? 0) / most);
  /** @type {GridCell[]} */
  const cells = changes.map((change, k) => [row[k], column[k], change, change ? signed(change) : ""]);
  cellGrid(box, { title: difference, rows, columns, cells, fill, width });
  make("div", { class: "note" }, box, `Red: more ranks in ${second}, blue: fewer; the strongest color: ${most} ranks.`);
}

/**
 * Draws what changes: losses, progress and curves.
 *
 * @type {(parent: Element, comparison: Training, width: number) => void}
 */
export function drawProgress(parent, { arms = {}, running, bar, leader }, width) {
  for (const [name, arm] of Object.entries(arms)) {
    const box = [...parent.querySelectorAll(".arm")].find((box) => box.getAttribute("data-arm") === name);
    const outcome = box?.querySelector(".outcome"), spent = box?.querySelector(".spent");
    if (outcome && spent) sayOutcome(outcome, spent, arm, name, leader);
  }
  const curves = parent.querySelector(".curves");
  if (!curves) return;
  curves.replaceChildren();
  const { words, done = 0, total = null } = bar ?? {};
  if (running && words) drawBar(make("div", { class: "note" }, curves), { words, done, total });
  const isDrawn = Object.values(arms).some(({ losses = [], held = [] }) => losses.length || held.length);
  if (isDrawn) lossCurves(curves, arms, widthOf(curves, width));
}

/** @type {(outcome: Element, spent: Element, arm: Arm, name: string, leader: string | undefined) => void} */
function sayOutcome(outcome, spent, arm, name, leader) {
  outcome.replaceChildren();
  spent.replaceChildren();
  const { step = 0, planned = 0, loss, interval, seconds, rate } = arm;
  if (loss !== undefined) {
    make("span", { class: "loss" }, outcome, loss.toPrecision(3));
    explained(make("span", {}, outcome, "held-out loss"));
    const distance = interval ? `${interval} above ${leader}` : name === leader ? "the lower loss" : "";
    make("div", { class: "note" }, outcome, distance);
    const cost = [`${step} of ${planned} steps`, ...(seconds ? [`${number(seconds)} s`] : []), `learning rate ${rate}`];
    spent.append([...cost, ...(arm.stopped ? ["stopped"] : [])].join(", "));
  } else if (planned) {
    make("progress", { max: planned, value: step, "aria-label": `training of ${name}` }, spent);
    const last = arm.losses?.at(-1)?.[1], held = arm.held?.at(-1)?.[1], said = [`step ${step} of ${planned}`];
    if (last !== undefined) said.push(`training loss ${last.toPrecision(3)}`);
    if (held !== undefined) said.push(`held-out loss ${held.toPrecision(4)}`);
    spent.append([...said, ...(arm.stopped ? ["stopped"] : [])].join(", "));
  }
}
