// The map of the allocation: cells of modules, their colors, and what the colors mean.

import { blend, BLUE, GREEN, groundOf, inkOn, isDark, RED, unknown } from "../colors.js";
import { make, put, write } from "../elements.js";
import { explained } from "../explain.js";
import { bandHeight, cross, LETTER, membersOf, moduleGrid, setLength } from "../grid.js";
import { mean, placeOf } from "../modules.js";
import { drawColors } from "../ramp.js";
import { MINUS, number, percent } from "../text.js";
import { reasonOf } from "./sentences.js";
import { currentTab, value, valueText } from "./values.js";

/** @import { Color } from "../colors.js" */
/** @import { Modules, Shape, Words } from "../grid.js" */
/** @import { Tab, Values } from "../traits.js" */
/** @import { Bench } from "./workbench.js" */

/**
 * The colors of a tab's values, and the texts of the ends and the middle of their ramp.
 *
 * @typedef {{fill: (v: number | null) => Color, ramp: Color[], ends: string[]}} Palette
 */

const NARROWEST = 14, WIDEST = 34; // pixels of a cell
const DIVERGING = ["ratio", "change", "signed"]; // values on both sides of a middle
const LABEL = "Modules: projections down, layers across. Arrow keys move, plus and minus change the rank, " +
  "Delete gives it back to the score, X leaves a module out";
/** @type {Words} */
const WORDS = {
  layer: (layer) => [layer, `layer ${layer}`],
  column: (name) => `Select ${name}`,
  row: (name) => `Select ${name} of all layers`,
};
/** @type {Record<string, (w: number, h: number, isBeside: boolean) => string>} */
const MARKS = { // a line above or below, a cross where there is no adapter, a small one beside a number
  ceiling: (w) => `M3 3.5H${w - 3}`,
  floor: (w, h) => `M3 ${h - 3.5}H${w - 3}`,
  "left out": (w, h, isBeside) => (isBeside ? `M${w - 6} 2l4 4m0-4l-4 4` : cross(w, h)),
};
const SIGNS = [
  ["dashed", "by hand", "by hand"],
  ["over", "the most allowed", "ceiling"],
  ["under", "the least allowed", "floor"],
  ["cross", "left out", "left out"],
];

/**
 * Lays the map out for a width; where that is too narrow for all layers, they go on in a second band below.
 *
 * @type {(bench: Bench, width: number) => void}
 */
export function layOut(bench, width) {
  const { about, svg } = bench, wide = Math.max(320, width), shape = shapeOf(about, wide);
  const attributes = {
    width: wide,
    height: shape.bands * bandHeight(about, shape, 20),
    role: "grid",
    "aria-multiselectable": "true",
    "aria-label": LABEL,
  };
  for (const [name, setting] of Object.entries(attributes)) put(svg, name, setting);
  Object.assign(bench, moduleGrid(svg, about, shape, WORDS));
}

/** @type {(modules: Modules, wide: number) => Shape & {bands: number}} */
function shapeOf({ rows, columns }, wide) {
  const longest = Math.max(...rows.map((row) => row.length)), right = 46;
  const left = Math.min(LETTER * Math.min(longest, 24) + 12, 0.3 * wide), room = wide - left - right;
  const bands = Math.ceil((columns.length * NARROWEST) / room);
  const w = Math.min(WIDEST, room / Math.ceil(columns.length / bands));
  /** @type {(row: string) => string} */
  const stack = (row) => (row.includes(".") ? row.split(".")[0] : "");
  const gaps = [0]; // encoder and decoder stand apart
  for (let j = 1; j < rows.length; j++) gaps.push(gaps[j - 1] + (stack(rows[j]) === stack(rows[j - 1]) ? 0 : 8));
  const font = w < 17 ? 8.5 : w < 22 ? 9.5 : 11;
  return { left, right, top: 34, w, letters: left / LETTER, font, tall: 26, above: 3, inset: 1, bands, gaps };
}

/**
 * Paints the cells and bars by the tab that is shown, and writes what the colors mean.
 *
 * @type {(bench: Bench) => void}
 */
export function paintMap(bench) {
  const { about, cells, bars, root, model } = bench, tab = currentTab(bench);
  const values = about.names.map((_, k) => value(bench, tab, k)), palette = paletteOf(bench, tab, values, isDark(root));
  const selected = new Set(model.get("selected"));
  cells.forEach((_, k) => paintCell(bench, tab, k, palette.fill(values[k]), selected.has(k)));
  const means = { row: meansOf(about, "row", values), column: meansOf(about, "column", values) };
  for (const bar of bars) setLength(bar, means[bar.which][bar.at] / (Math.max(...means[bar.which]) || 1));
  drawLegend(bench, tab, palette);
}

/**
 * The mean size of the values by row or column.
 *
 * @type {(about: Modules, which: "row" | "column", values: Values) => number[]}
 */
function meansOf(about, which, values) {
  const length = { row: about.rows, column: about.columns }[which].length;
  /** @type {(at: number) => number[]} */
  const sizes = (at) => membersOf(about, which, at).map((k) => Math.abs(values[k] ?? 0));
  return Array.from({ length }, (_, at) => mean(sizes(at)));
}

/** @type {(bench: Bench, tab: Tab, k: number, fill: Color, isSelected: boolean) => void} */
function paintCell(bench, tab, k, fill, isSelected) {
  const cell = bench.cells[k], reason = bench.current.reasons[k], ink = inkOn(fill);
  const text = cell.w < 12 ? "" : valueText(bench, tab, k);
  put(cell.rect, "fill", `rgb(${fill})`);
  write(cell.text, text);
  put(cell.text, "fill", ink);
  put(cell.mark, "d", MARKS[reason]?.(cell.w, cell.h, text !== "") ?? "");
  put(cell.mark, "stroke", ink);
  put(cell.g, "class", `cell${reason === "by hand" ? " hand" : ""}${isSelected ? " on" : ""}`);
  put(cell.g, "tabindex", k === bench.focus ? 0 : -1);
  put(cell.g, "aria-selected", isSelected);
  const words = `${placeOf(bench.about, k)}, rank ${bench.current.ranks[k]}, ${reasonOf(bench, k)}`;
  put(cell.g, "aria-label", `${words}${tab.of === "ranks" ? "" : `, ${text}`}`);
}

/**
 * The colors of a tab's values, which span those that are there, and the texts of the ends and the middle of their ramp.
 *
 * @type {(bench: Pick<Bench, "current">, tab: Pick<Tab, "name" | "kind">, values: Values, dark: boolean) => Palette}
 */
export function paletteOf({ current }, tab, values, dark) {
  const ground = groundOf(dark), isDiverging = DIVERGING.includes(tab.kind), middle = current.middles[tab.name] ?? 1;
  /** @type {(v: number) => number} */
  function scaled(v) {
    if (tab.kind === "ratio") return Math.log2(v / middle);
    return tab.kind === "percent" ? Math.sqrt(v) : v;
  }
  const [below, above] = spansOf(
    tab.kind,
    values.flatMap((v) => (v === null ? [] : [scaled(v)])).filter(Number.isFinite),
  );
  /** @type {(v: number | null) => Color} */
  function fill(v) {
    if (v === null) return unknown(dark);
    const share = scaled(v) / (scaled(v) > 0 ? above : below);
    return blend(ground, isDiverging ? (share > 0 ? RED : BLUE) : GREEN, share);
  }
  const ramp = isDiverging ? [BLUE, ground, RED] : [ground, GREEN];
  return { fill, ramp, ends: endsOf(tab.kind, middle, below, above) };
}

/**
 * How far the values reach below and above their middle: ratios on a scale of their own on each side, at least half and
 * twice the middle; others as far on one side as on the other.
 *
 * @type {(kind: Tab["kind"], values: number[]) => [number, number]}
 */
function spansOf(kind, values) {
  if (kind === "ratio") return [Math.max(1, -Math.min(...values)), Math.max(1, ...values)];
  const most = Math.max(...values.map(Math.abs), kind === "change" ? 1 : 1e-9);
  return [most, most];
}

/** @type {(kind: Tab["kind"], middle: number, below: number, above: number) => string[]} */
function endsOf(kind, middle, below, above) {
  return {
    ratio: [number(middle / 2 ** below), number(middle), number(middle * 2 ** above)],
    change: [`${MINUS}${above}`, "0", `+${above}`],
    percent: ["0", percent((above / 2) ** 2), percent(above ** 2)],
    number: ["0", "", number(above)],
    signed: [`${MINUS}${percent(above)}`, "0", `+${percent(above)}`],
  }[kind];
}

/** @type {(bench: Bench, tab: Tab, palette: Palette) => void} */
function drawLegend({ legend, current }, tab, { ramp, ends }) {
  legend.replaceChildren();
  const bars = ["change", "signed"].includes(tab.kind) ? "mean size" : "means";
  drawColors(legend, ramp, ends, `${tab.unit}; bars: ${bars}`);
  for (const [sign, meaning, reason] of SIGNS) {
    if (!current.reasons.includes(reason)) continue;
    const entry = make("span", { class: "entry" }, legend);
    make("span", { class: `sign ${sign}` }, entry, sign === "cross" ? "\u00d7" : "");
    entry.append(meaning);
    explained(entry, meaning);
  }
}
