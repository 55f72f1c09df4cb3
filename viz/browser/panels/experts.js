// The panel "Experts": a map of the routed experts, layers across, on the colors of what one chooses to see.

import { blend, BLUE, GREEN, groundOf, isDark, RED, unknown } from "../colors.js";
import { button, group } from "../controls.js";
import { make, put } from "../elements.js";
import { cellGrid, MOVES } from "../grid.js";
import { sum } from "../modules.js";
import { drawColors } from "../ramp.js";
import { capitalized, number, percent, sign, whole } from "../text.js";

/** @import { Modules } from "../grid.js" */
/** @import { Current, GridCell, Values } from "../traits.js" */
/** @import { Context } from "./panels.js" */

const HIGHEST = 560, WIDEST = 760; // pixels of the map
const PLACES = "experts down, layers across";
const LABEL = "Experts down, layers across. Arrow keys move from expert to expert";

/**
 * What can be shown of the experts, `unit` in words; a difference has the ends of its intervals.
 *
 * @typedef {object} Measure
 * @property {string} name
 * @property {string} about
 * @property {string} unit
 * @property {"count" | "percent" | "points"} kind
 * @property {Values} values
 * @property {Values} [low]
 * @property {Values} [high]
 */

/**
 * The experts: the place of each among `layers`, and its number there. `parameters` are the modules of the map that
 * hold the experts of a layer. The `choice` is kept while another panel is open.
 *
 * @typedef {{layers: number[], column: number[], expert: number[], measures: Measure[], parameters: number[][],
 *   choice?: {name: string, at: number | null}}} Part
 */

/** @type {(parent: Element, part: Part, context: Context) => void} */
export function expertsPart(parent, part, { about, model }) {
  const choice = part.choice ??= { name: part.measures[0].name, at: null };
  const root = make("div", { class: "experts" }, parent), bar = make("div", { class: "bar" }, root);
  const said = make("div", { class: "finding", "aria-live": "polite" }, root), legend = make("div", {}, root);
  const map = make("div", { tabindex: 0, role: "group", "aria-label": LABEL }, root);
  const buttons = group(bar, "What the map of the experts shows");
  /** @type {Element[]} */
  let cells = [];
  /** @type {() => Measure[]} */
  const measures = () => model ? [...part.measures, ...ranksOf(part, about, model.get("current"))] : part.measures;
  /** @type {() => Measure} */
  const shown = () => measures().find(({ name }) => name === choice.name) ?? part.measures[0];
  const switches = measures().map(({ name, about: words }) => {
    const show = () => {
      choice.name = name;
      draw();
    };
    return button(buttons, capitalized(name), words, show, { "data-measure": name });
  });
  function draw() {
    for (const one of switches) put(one, "aria-pressed", one.dataset.measure === choice.name);
    map.replaceChildren();
    legend.replaceChildren();
    cells = drawMap(map, legend, part, shown());
    point(choice.at ?? top(shown()));
  }
  /** @type {(at: number) => void} */
  function point(at) {
    map.querySelector(".on")?.classList.remove("on");
    cells[at].classList.add("on");
    said.textContent = describe(part, measures(), at);
  }
  /** @type {(at: number) => void} */
  function pick(at) {
    choice.at = at;
    point(at);
  }
  map.addEventListener("pointermove", ({ target }) => {
    const at = cells.indexOf(/** @type {Element} */ (target));
    if (at >= 0) pick(at);
  });
  map.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    const at = beside(part, choice.at ?? top(shown()), move);
    if (at >= 0) pick(at);
  });
  follow(root, model, part, draw);
  draw();
  let width = map.clientWidth; // 0 while the panel is closed
  new ResizeObserver(() => {
    if (map.clientWidth === width) return;
    width = map.clientWidth;
    if (width) draw();
  }).observe(map);
}

/**
 * Has the map follow the ranks, as long as it is on the page.
 *
 * @type {(root: Element, model: Context["model"], part: Part, draw: () => void) => void}
 */
function follow(root, model, part, draw) {
  if (!model || !part.parameters.flat().length) return;
  function changed() {
    if (root.isConnected) draw();
    else model?.off?.("change:current", changed);
  }
  model.on("change:current", changed);
}

/**
 * The expert with the largest value.
 *
 * @type {(measure: Measure) => number}
 */
function top({ values }) {
  const sizes = values.map((value) => Math.abs(value ?? 0));
  return sizes.indexOf(Math.max(...sizes));
}

/**
 * The ranks of each expert, in all parameters that hold it together; none if the map does not have them.
 *
 * @type {(part: Part, modules: Modules, current: Current) => Measure[]}
 */
function ranksOf({ parameters, column, expert }, { rows, row }, { ranks, experts }) {
  if (!parameters.flat().length) return [];
  const names = [...new Set(parameters.flat().map((k) => rows[row[k]].replace(/^.*\./, "")))].join(" and ");
  const about = `Ranks of ${names} together. PEFT holds ${
    experts ? "the largest" : "one rank"
  } for all experts of a parameter.`;
  const values = column.map((place, n) => sum(parameters[place].map((k) => experts?.[k][expert[n]] ?? ranks[k])));
  return [{ name: "rank", about, unit: `ranks of ${names} together`, kind: "count", values }];
}

/**
 * The next expert in a direction [columns, rows], or -1.
 *
 * @type {(part: Part, at: number, direction: [number, number]) => number}
 */
function beside({ column, expert }, at, [right, down]) {
  return column.findIndex((place, n) => place === column[at] + right && expert[n] === expert[at] + down);
}

/** @type {(measure: Measure, value: number | null | undefined) => string} */
function form({ kind }, value) {
  if (value === null || value === undefined) return "\u2013";
  return kind === "count"
    ? whole(Math.round(value))
    : kind === "percent"
    ? percent(value)
    : sign(value) + number(Math.abs(100 * value));
}

/**
 * What is known of an expert.
 *
 * @type {(part: Part, measures: Measure[], at: number) => string}
 */
function describe({ layers, column, expert }, measures, at) {
  const numbers = measures.map((measure) => {
    const { name, kind, values, low, high } = measure, hasInterval = (low?.[at] ?? null) !== null;
    const interval = hasInterval ? ` (${form(measure, low?.[at])} to ${form(measure, high?.[at])})` : "";
    return `${name} ${form(measure, values[at])}${kind === "points" ? " points" : ""}${interval}`;
  });
  return `Layer ${layers[column[at]]} expert ${expert[at]}: ${numbers.join(", ")}.`;
}

/**
 * Draws the experts on the colors of a measure, and in a legend what these mean; returns the cells by expert.
 *
 * @type {(map: HTMLElement, legend: Element, part: Part, measure: Measure) => Element[]}
 */
function drawMap(map, legend, { layers, column, expert }, measure) {
  const { kind, values, low, high } = measure, isSigned = kind === "points";
  const dark = isDark(map), ground = groundOf(dark);
  const most = Math.abs(values[top(measure)] ?? 0) || 1, count = Math.max(...expert) + 1;
  /** @type {GridCell[]} */
  const cells = values.map((value, n) => [expert[n], column[n], isSigned ? value : value || null, ""]);
  const svg = cellGrid(map, {
    title: `Experts by layer: ${measure.name}`,
    rows: expert.slice(0, count).map((_, n) => String(n)),
    columns: layers,
    cells,
    fill: (value) => {
      if (value === null) return unknown(dark);
      return blend(ground, !isSigned ? GREEN : value > 0 ? RED : BLUE, Math.sqrt(Math.abs(value) / most));
    },
    width: Math.min(WIDEST, map.clientWidth || WIDEST),
    height: Math.max(3, Math.min(17, HIGHEST / count)),
  });
  const colors = isSigned ? [BLUE, ground, RED] : [ground, GREEN], drawn = [...svg.querySelectorAll("rect")];
  const ends = (isSigned ? [-most, 0, most] : [0, most / 4, most]).map((end) => form(measure, end));
  const gray = cells.some(([, , value]) => value === null) ? `; gray: ${form(measure, 0)}` : "";
  const note = isSigned ? "; dots: the interval excludes zero" : gray;
  drawColors(make("div", { class: "legend" }, legend), colors, ends, `${measure.unit}; ${PLACES}${note}`);
  drawn.forEach((cell, n) => ((low?.[n] ?? 0) > 0 || (high?.[n] ?? 0) < 0) && drawDot(svg, cell));
  return drawn;
}

/** @type {(svg: Element, cell: Element) => void} */
function drawDot(svg, cell) {
  const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(cell.getAttribute(name)));
  make("circle", { class: "clear", cx: x + w / 2, cy: y + h / 2, r: Math.min(w, h, 10) / 5 }, svg);
}
