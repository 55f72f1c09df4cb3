// Grids of modules, projections down and layers across: one to act on, and one to look at.

import { blend, GREEN, groundOf, inkOn, isDark } from "./colors.js";
import { make, put } from "./elements.js";

/** @import { Color } from "./colors.js" */
/** @import { Attributes } from "./elements.js" */
/** @import { GridCell } from "./traits.js" */

export const LETTER = 6.3; // width of a letter of a label in pixels, about
const HEIGHT = 22; // of a row in pixels
const TIGHT = 5.6; // width of a character of a cell to look at

/** @type {Record<string, [number, number]>} */
export const MOVES = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
/** @type {Record<string, number>} */
export const STEPS = { "+": 1, "=": 1, "-": -1 };

/**
 * Modules on a grid: the names of its rows and columns, and the row and the column of each module.
 *
 * @typedef {{rows: string[], columns: number[], row: number[], column: number[]}} Modules
 */

/**
 * The cell of a module: `g` holds a rectangle, a text and the path of a mark.
 *
 * @typedef {{g: SVGElement, rect: SVGElement, text: SVGElement, mark: SVGElement, w: number, h: number}} Cell
 */

/**
 * A bar beside a row or above a column, up to `room` pixels long; that of a column stands on `base`.
 *
 * @typedef {{which: "row" | "column", at: number, rect: SVGElement, room: number, base: number}} Bar
 */

/**
 * Pixels of a grid. Its columns may be in several bands, one below another, and its rows `gaps` pixels lower.
 *
 * @typedef {object} Shape
 * @property {number} left Room for the names of the rows.
 * @property {number} right Room for their bars.
 * @property {number} top Room for the bars of the columns.
 * @property {number} w Width of a cell.
 * @property {number} letters The most that a name may have.
 * @property {number} font Size of the text of a cell.
 * @property {number} tall The longest bar of a column.
 * @property {number} above Between a bar and its column.
 * @property {number} inset Between a bar and the edges of its column.
 * @property {number} [bands]
 * @property {number[]} [gaps]
 */

/**
 * What a grid says: text and name of a layer, and the titles of a column and a row.
 *
 * @typedef {object} Words
 * @property {(layer: number) => [string | number, string]} layer
 * @property {(name: string) => string} column
 * @property {(name: string) => string} row
 */

/**
 * A grid while it is drawn.
 *
 * @typedef {{svg: SVGElement, modules: Modules, shape: Shape, words: Words, cells: Cell[], bars: Bar[]}} Grid
 */

/**
 * The modules of a row or a column.
 *
 * @type {(modules: Modules, which: "row" | "column", at: number) => number[]}
 */
export const membersOf = (modules, which, at) => modules[which].flatMap((place, k) => (place === at ? [k] : []));

/**
 * The modules of the row or column whose label an event is on, or null.
 *
 * @type {(modules: Modules, event: {target: EventTarget | null}) => number[] | null}
 */
export function labelMembers(modules, event) {
  const { row, column } = /** @type {HTMLElement | SVGElement} */ (event.target).dataset;
  if (row !== undefined) return membersOf(modules, "row", Number(row));
  return column === undefined ? null : membersOf(modules, "column", Number(column));
}

/**
 * The next module from one in a direction [columns, rows], or -1: empty places are passed over.
 *
 * @type {(modules: Modules, from: number, direction: [number, number]) => number}
 */
export function neighbor(modules, from, [right, down]) {
  let i = modules.column[from], j = modules.row[from], k = -1;
  while (k < 0 && i >= 0 && j >= 0 && i < modules.columns.length && j < modules.rows.length) {
    [i, j] = [i + right, j + down];
    k = modules.row.findIndex((row, n) => row === j && modules.column[n] === i);
  }
  return k;
}

/**
 * The path of a cross over a cell.
 *
 * @type {(w: number, h: number) => string}
 */
export const cross = (w, h) => `M5 5L${w - 5} ${h - 5}M5 ${h - 5}L${w - 5} 5`;

/**
 * The height of a band in pixels, bars and the names of the layers included.
 *
 * @param {Modules} modules
 * @param {Shape} shape
 * @param {number} below Room below the rows.
 */
export function bandHeight(modules, { top, gaps = [] }, below) {
  return top + modules.rows.length * HEIGHT + (gaps.at(-1) ?? 0) + below;
}

/**
 * Draws the cells of modules, their labels and bars; each cell is then painted by the caller.
 *
 * @param {SVGElement} svg
 * @param {Modules} modules
 * @param {Shape} shape
 * @param {Words} words
 * @returns {{cells: Cell[], bars: Bar[]}} The cells by module, and all bars.
 */
export function moduleGrid(svg, modules, shape, words) {
  /** @type {Grid} */
  const grid = { svg, modules, shape, words, cells: [], bars: [] };
  const bands = shape.bands ?? 1, length = Math.ceil(modules.columns.length / bands);
  svg.replaceChildren();
  for (let b = 0; b < bands; b++) drawBand(grid, b * bandHeight(modules, shape, 20) + shape.top, b * length, length);
  return { cells: grid.cells, bars: grid.bars };
}

/** @type {(grid: Grid, y0: number, first: number, length: number) => void} */
function drawBand(grid, y0, first, length) {
  const { svg, modules, shape } = grid, { left, w, gaps = [] } = shape;
  const here = modules.columns.slice(first, first + length);
  /** @type {(i: number) => number} */
  const x = (i) => left + w * (i - first);
  const bottom = bandHeight(modules, shape, 14) - shape.top + y0, every = Math.ceil(18 / w);
  const head = make("g", { role: "row" }, svg);
  drawLabel(head, { x: left - 6, y: bottom, "text-anchor": "end", role: "columnheader" }, "layer");
  here.forEach((layer, n) => drawColumn(grid, head, { layer, i: first + n, x: x(first + n), y0, bottom, every }));
  modules.rows.forEach((name, j) => {
    const row = make("g", { role: "row" }, svg), y = y0 + HEIGHT * j + (gaps[j] ?? 0);
    drawRow(grid, row, { name, j, y, end: left + w * here.length });
    for (const k of membersOf(modules, "row", j)) {
      const i = modules.column[k];
      if (i >= first && i < first + length) grid.cells[k] = drawCell(row, k, x(i), y, shape);
    }
  });
}

/** @type {(parent: Element, attributes: Attributes, text: string | number) => SVGTextElement} */
const drawLabel = (parent, attributes, text) =>
  make("text", { svg: true, class: "label", ...attributes }, parent, text);

/**
 * @type {(grid: Grid, head: Element, column: {layer: number, i: number, x: number, y0: number, bottom: number,
 *   every: number}) => void}
 */
function drawColumn({ svg, shape, words, bars }, head, { layer, i, x, y0, bottom, every }) {
  const { w, inset } = shape, rect = make("rect", { class: "total", x: x + inset, width: w - 2 * inset }, svg);
  bars.push({ which: "column", at: i, rect, room: shape.tall, base: y0 - shape.above });
  const [text, name] = words.layer(layer), at = { x: x + w / 2, y: bottom, "text-anchor": "middle" };
  const label = { ...at, role: "columnheader", "data-column": i, "aria-label": name };
  make("title", { svg: true }, drawLabel(head, label, i % every ? "\u00b7" : text), words.column(name));
}

/** @type {(grid: Grid, row: Element, place: {name: string, j: number, y: number, end: number}) => void} */
function drawRow({ svg, shape, words, bars }, row, { name, j, y, end }) {
  const { left, right, letters, inset } = shape;
  const short = name.length > letters ? "\u2026" + name.slice(-Math.floor(letters) + 2) : name;
  const label = { x: left - 6, y: y + HEIGHT / 2 + 4, "text-anchor": "end", role: "rowheader", "data-row": j };
  make("title", { svg: true }, drawLabel(row, label, short), words.row(name));
  const at = { x: end + 4, y: y + inset + 1, height: HEIGHT - 2 * inset - 2 };
  bars.push({ which: "row", at: j, rect: make("rect", { class: "total", ...at }, svg), room: right - 8, base: 0 });
}

/** @type {(row: Element, k: number, x: number, y: number, shape: Shape) => Cell} */
function drawCell(row, k, x, y, { w, font }) {
  const h = HEIGHT, at = { "data-k": k, transform: `translate(${x} ${y})` };
  const g = make("g", { class: "cell", role: "gridcell", tabindex: -1, ...at }, row);
  const rect = make("rect", { x: 1, y: 1, width: w - 2, height: h - 2, rx: 2 }, g);
  const middle = { x: w / 2, y: h / 2 + 4, "text-anchor": "middle", "font-size": font };
  const text = make("text", { svg: true, ...middle }, g);
  return { g, rect, text, mark: make("path", { class: "mark" }, g), w, h };
}

/**
 * Gives a bar a share of its room.
 *
 * @type {(bar: Bar, share: number) => void}
 */
export function setLength(bar, share) {
  const length = share * bar.room;
  put(bar.rect, bar.which === "column" ? "height" : "width", length);
  if (bar.which === "column") put(bar.rect, "y", bar.base - length);
}

/**
 * Cells to look at: each is [row, column, value, text], with values from 0 to `most` or null, or those of a `fill`. The
 * text is shown where it fits, and on hover. Rows are `height` pixels high.
 *
 * @typedef {{title: string, rows: string[], columns: number[], cells: GridCell[], most?: number,
 *   fill?: (value: number | null) => Color, width?: number, height?: number}} Cells
 * @type {(parent: Element, grid: Cells) => SVGSVGElement}
 */
export function cellGrid(
  parent,
  { title, rows, columns, cells, most = 1, fill: colorOf, width = 560, height: h = 17 },
) {
  const left = 6.2 * Math.max(...rows.map((name) => Math.min(name.length, 22))) + 10;
  const w = Math.min(26, (width - left) / columns.length), every = Math.ceil(18 / w), ground = groundOf(isDark(parent));
  const isFine = h < 8, gap = isFine ? 0 : 1, top = Math.max(0, 6 - h / 2); // half a label above the first row
  const apart = [1, 2, 5, 10].find((rows) => rows * h >= 12) ?? 20;
  const size = { width: left + w * columns.length, height: top + h * rows.length + 18 };
  const view = { ...size, viewBox: `0 0 ${size.width} ${size.height}` };
  const svg = make("svg", { class: "chart", role: "img", ...view, "aria-label": title }, parent);
  const fillOf = colorOf ?? ((value) => blend(ground, GREEN, value === null || !most ? 0 : value / most));
  /** @type {(x: number, y: number, anchor: string, text: string | number) => SVGTextElement} */
  const tick = (x, y, anchor, text) =>
    make("text", { svg: true, class: "tick", x, y, "text-anchor": anchor }, svg, text);
  rows.forEach((name, j) => {
    if (j % apart === 0) tick(left - 6, top + h * (j + 0.5) + 3.5, "end", name.slice(-22));
  });
  columns.forEach((name, i) => {
    if (i % every === 0) tick(left + w * (i + 0.5), top + h * rows.length + 13, "middle", name);
  });
  for (const [row, column, value, text] of cells) {
    const fill = fillOf(value);
    const at = { x: left + w * column + gap / 2, y: top + h * row + gap / 2, width: w - gap, height: h - gap };
    const rect = make("rect", { class: isFine ? "grid fine" : "grid", ...at, fill: `rgb(${fill})` }, svg);
    if (text) make("title", { svg: true }, rect, `layer ${columns[column]} ${rows[row]}: ${text}`);
    if (!text || w <= 15 || w < TIGHT * text.length) continue;
    const middle = { x: left + w * (column + 0.5), y: top + h * row + 12, "text-anchor": "middle" };
    make("text", { svg: true, ...middle, "font-size": 9, fill: inkOn(fill) }, svg, text);
  }
  return svg;
}
