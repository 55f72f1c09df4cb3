// The map of the adapter's modules by what they contributed; a click switches a module off, a drag cuts its rank.

import { isDark, largest, tint } from "../../colors.js";
import { make, put, write } from "../../elements.js";
import {
  bandHeight,
  cross,
  labelMembers,
  LETTER,
  membersOf,
  moduleGrid,
  MOVES,
  neighbor,
  setLength,
  STEPS,
} from "../../grid.js";
import { sum } from "../../modules.js";
import { drawRamp } from "../../strip.js";
import { nats, quoted, unsignedNats } from "../../text.js";
import { MEASURES } from "./answer.js";
import { contribution, cost, isMeasured, moduleName } from "./contributions.js";

/** @import { Words } from "../../grid.js" */
/** @import { Panel } from "./attribution.js" */

const PULL = 6; // pixels that one drags for a rank
const LABEL = "Modules of the adapter: projections down, layers across. " +
  "Arrow keys move, Enter switches a module off and on, minus and plus change its rank, " +
  "Shift and space switches its row, Control and space its column";
/** @type {Words} */
const WORDS = {
  layer: (layer) => (layer < 0 ? ["\u2013", "outside"] : [layer, `layer ${layer}`]),
  column: (name) => `Switch ${name} off or on`,
  row: (name) => `Switch ${name} off or on in all layers`,
};

/**
 * Draws the map into an SVG, to be painted.
 *
 * @type {(panel: Panel, svg: SVGElement) => void}
 */
export function drawMap(panel, svg) {
  const { part } = panel, w = part.columns.length > 40 ? 20 : 26, right = 60, letters = 24;
  const left = LETTER * Math.min(letters, Math.max(...part.rows.map((row) => row.length))) + 12;
  const shape = { left, right, top: 28, w, letters, font: 9.5, tall: 24, above: 2, inset: 3 };
  const width = left + w * part.columns.length + right, height = bandHeight(part, shape, 18);
  const size = { width, height, viewBox: `0 0 ${width} ${height}`, style: `min-width: ${Math.min(width, 560)}px` };
  for (const [name, value] of Object.entries({ ...size, role: "grid", "aria-label": LABEL })) {
    put(svg, name, value);
  }
  Object.assign(panel, moduleGrid(svg, part, shape, WORDS));
  panel.titles = panel.cells.map(({ g }) => make("title", { svg: true }, g));
}

/**
 * Paints cells and bars by what the modules contributed, and says in a legend what the colors mean.
 *
 * @type {(panel: Panel, legend: Element) => void}
 */
export function paintMap(panel, legend) {
  const { part, choice, bars, root, sample } = panel, dark = isDark(root);
  const values = part.names.map((_, k) => contribution(panel, k, choice.measure)), most = largest(values);
  panel.cells.forEach((_, k) => paintCell(panel, k, values[k], most, tint(values[k] / most, dark)));
  const sums = bars.map(({ which, at }) => sum(membersOf(part, which, at).map((k) => values[k])));
  /** @type {(which: "row" | "column") => number} */
  const longestOf = (which) => largest(sums.filter((_, n) => bars[n].which === which));
  const longest = { row: longestOf("row"), column: longestOf("column") };
  bars.forEach((bar, n) => {
    setLength(bar, Math.abs(sums[n]) / longest[bar.which]);
    put(bar.rect, "class", sums[n] > 0 ? "total gain" : "total loss");
  });
  legend.replaceChildren();
  const token = choice.token === null ? "the whole answer" : quoted(sample.tokens[sample.positions[choice.token]]);
  const isAllMeasured = part.names.every((_, k) => isMeasured(panel, k));
  const unknown = isAllMeasured ? "" : "; dashed: leaving it out is not measured here";
  drawRamp(legend, most, `nats of ${MEASURES[choice.measure]} contributed to ${token}; bars: sums${unknown}`, dark);
}

/** @type {(panel: Panel, k: number, value: number, most: number, color: {fill: string, ink: string}) => void} */
function paintCell(panel, k, value, most, color) {
  const { part, choice, sample, known, focus } = panel, cell = panel.cells[k];
  const left = choice.ranks[k], isOff = left === 0, rank = part.ranks[k], isKnown = isMeasured(panel, k);
  put(cell.rect, "fill", color.fill);
  put(cell.text, "fill", color.ink);
  put(cell.mark, "stroke", color.ink);
  put(cell.mark, "d", isOff ? cross(cell.w, cell.h) : "");
  write(cell.text, isOff ? "" : left ? `${left}/${rank}` : cellText(value, most));
  const state = isOff ? "switched off" : `rank ${left ?? rank} of ${rank}`;
  const words = `${moduleName(part, k)}: contributed ${nats(value)} nats; ${state}`;
  put(cell.g, "aria-label", words);
  put(cell.g, "aria-selected", left !== undefined);
  put(cell.g, "tabindex", k === focus ? 0 : -1);
  put(cell.g, "class", `cell${left ? " hand" : ""}${isKnown ? "" : " unknown"}`);
  const alone = sample.switched[`${k}:0`] ?? known[`${choice.sample} ${k}:0`];
  const { values } = alone ?? {}, price = values && unsignedNats(cost(panel, { values }, choice.measure));
  panel.titles[k].textContent = words + (price ? `; leaving it out alone costs ${price}` : "") +
    (isKnown ? "" : "; leaving it out is not measured here");
}

/**
 * The size of a contribution, if it is not among the small ones.
 *
 * @type {(value: number, most: number) => string}
 */
function cellText(value, most) {
  const size = Math.abs(value);
  return size >= 0.15 * most ? size.toFixed(size < 9.95 ? 1 : 0).replace(/^0/, "") : "";
}

/** @type {(panel: Panel, k: number) => number} */
const rankOf = ({ part, choice }, k) => choice.ranks[k] ?? part.ranks[k];
/** @type {(panel: Panel, k: number, rank: number) => number} */
const clamp = ({ part }, k, rank) => Math.max(0, Math.min(part.ranks[k], rank));

/**
 * Has the map follow the pointer; without a kernel ranks cannot be cut.
 *
 * @type {(panel: Panel, svg: SVGElement) => void}
 */
export function followPointer(panel, svg) {
  const { part } = panel;
  svg.addEventListener("pointerdown", (event) => {
    const members = labelMembers(part, event), cell = /** @type {Element} */ (event.target).closest(".cell");
    if (members) return panel.turn(members);
    if (!cell || event.button) return;
    event.preventDefault();
    const k = panel.focus = Number(cell.getAttribute("data-k"));
    panel.cells[k].g.focus({ preventScroll: true });
    panel.drag = { k, y: event.clientY, rank: rankOf(panel, k), isMoved: false };
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    const { drag } = panel;
    if (!drag || !part.live) return;
    const by = Math.round((drag.y - event.clientY) / PULL), rank = clamp(panel, drag.k, drag.rank + by);
    drag.isMoved ||= by !== 0;
    if (drag.isMoved && rank !== rankOf(panel, drag.k)) panel.turn([drag.k], rank);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => {
      const { drag } = panel;
      if (!drag) return;
      panel.drag = null;
      if (drag.isMoved) panel.regenerate();
      else if (end === "pointerup") panel.turn([drag.k]);
    });
  }
}

/**
 * Has the map follow the keys.
 *
 * @type {(panel: Panel, svg: SVGElement) => void}
 */
export function followKeys(panel, svg) {
  svg.addEventListener("keydown", (event) => {
    if (!act(panel, event)) return;
    event.preventDefault();
    event.stopPropagation(); // the keys of the other map are not meant
  });
}

/**
 * Does what a key means; returns whether it means anything.
 *
 * @type {(panel: Panel, event: KeyboardEvent) => boolean}
 */
function act(panel, event) {
  const { part, focus } = panel, { key } = event, move = MOVES[key], step = STEPS[key];
  if (move) walk(panel, move);
  else if (step && part.live) panel.turn([focus], clamp(panel, focus, rankOf(panel, focus) + step));
  else if (key === " " && (event.shiftKey || event.ctrlKey)) {
    const which = event.shiftKey ? "row" : "column";
    panel.turn(membersOf(part, which, part[which][focus]));
  } else if (key === "Enter" || key === " ") panel.turn([focus]);
  else if (key === "Escape") panel.switchAllOn();
  else return false;
  return true;
}

/** @type {(panel: Panel, move: [number, number]) => void} */
function walk(panel, move) {
  const k = neighbor(panel.part, panel.focus, move);
  if (k < 0) return;
  panel.focus = k;
  panel.paint();
  panel.cells[k].g.focus();
}
