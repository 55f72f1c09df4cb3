// Beside the map: spectra with a line at the rank, shares by rank, and ranks from resampled scores of the module.

import { chart } from "./chart.js";
import { choose } from "./controls.js";
import { make } from "./elements.js";
import { explained } from "./explain.js";
import { drawTable } from "./table.js";
import { capitalized, percent } from "./text.js";

/** @import { Line } from "./chart.js" */
/** @import { Option } from "./controls.js" */

/** @import { About, Curves, Spectrum } from "./traits.js" */

/** @type {Record<string, number>} */
const COLORS = { energy: 0, variance: 1 };
const RANGES = "What they hold on average (dashed: least and most of an expert), and how many hold";

/**
 * A module: its number, place and rank, the counts of its resampled ranks as [rank, count] in ascending order, and lines
 * of text.
 *
 * @typedef {{k: number, place: string, rank: number, counts?: number[][], lines: string[]}} Module
 */

/**
 * The charts of the selected module, in an element that is drawn again for each module: one, and on demand the lines
 * of text and the others.
 *
 * @type {(about: About) => {root: HTMLElement, draw: (module: Module) => void}}
 */
export function moduleCharts(about) {
  const root = make("div", { class: "module" }), first = make("div", {}, root);
  const menu = make("details", {}, root), others = make("div", {}, menu);
  menu.prepend(make("summary", {}, null, "More"));
  let chosen = 0;
  /** @type {Module} */
  let shown;
  function drawOthers() {
    others.replaceChildren();
    if (!menu.open) return;
    for (const line of shown.lines) make("div", {}, others, line);
    if (about.spectra.length) drawDirections(others, about.spectra[chosen], about, shown);
    drawShares(others, about, shown);
    const { counts = [] } = shown;
    if (counts.length > 1) drawResamples(others, { ...shown, counts });
  }
  /** @type {(module: Module) => void} */
  function draw(module) {
    shown = module;
    first.replaceChildren();
    if (about.spectra.length > 1) {
      /** @type {Option[]} */
      const spectra = about.spectra.map((spectrum, i) => [i, spectrum.label]);
      choose(first, "Spectrum", spectra, chosen, (i) => {
        chosen = Number(i);
        draw(module);
        first.querySelector("select")?.focus();
      });
    }
    if (about.spectra.length) drawSums(first, about.spectra[chosen], about, module);
    drawOthers();
  }
  menu.addEventListener("toggle", drawOthers);
  return { root, draw };
}

/**
 * What two charts of a spectrum share: the lines of the module, with those of the same projection in gray, and the
 * directions that they are drawn over.
 *
 * @param {Spectrum} spectrum
 * @param {About} about
 * @param {Module} module
 */
function linesOf(spectrum, about, { k, rank }) {
  const mine = spectrum.index[k], measures = Object.keys(spectrum.curves);
  const alike = about.names.flatMap((_, n) => (about.row[n] === about.row[k] ? [spectrum.index[n]] : []));
  const others = [...new Set(alike)].filter((i) => i !== mine);
  /** @type {(measure: string, i: number, values: "sums" | "each") => number[][]} */
  const points = (measure, i, values) => {
    const curve = spectrum.curves[measure];
    return curve.at[i].map((direction, n) => [direction, curve[values][i][n]]);
  };
  /** @type {(values: "sums" | "each") => Line[]} */
  const lines = (values) => [
    ...others.map((i) => ({ gray: true, points: points(measures[0], i, values) })),
    ...measures.map((measure) => ({
      label: averaged(about, k, measure),
      term: measure,
      color: COLORS[measure],
      points: points(measure, mine, values),
    })),
  ];
  /** @type {(measure: string) => Line[]} */
  const range = (measure) => {
    const { at, ends } = spectrum.curves[measure];
    return ends[mine].map((end) => ({
      color: COLORS[measure],
      thin: true,
      dash: true,
      points: at[mine].map((direction, n) => [direction, end[n]]),
    }));
  };
  const far = Math.max(2, ...spectrum.curves[measures[0]].at.map((directions) => directions.at(-1) ?? 1));
  const x = { label: "direction", log: true, min: 1, max: far };
  return { mine, measures, lines, range, x, cursor: rank || null };
}

/** @type {(root: Element, spectrum: Spectrum, about: About, module: Module) => void} */
function drawSums(root, spectrum, about, module) {
  const { measures, lines, range, x, cursor } = linesOf(spectrum, about, module);
  make("div", { class: "key" }, root, capitalized(spectrum.meaning));
  chart(root, {
    title: `Cumulative shares of the directions of ${module.place}`,
    lines: [...lines("sums"), ...measures.flatMap(range)],
    cursor,
    height: 158,
    x: { ...x, label: "first directions taken" },
    y: { label: "cumulative share", percent: true, min: 0, max: 1 },
  });
}

/** @type {(root: Element, spectrum: Spectrum, about: About, module: Module) => void} */
function drawDirections(root, spectrum, about, module) {
  const { mine, measures, lines, x, cursor } = linesOf(spectrum, about, module), { k, place, rank } = module;
  const shares = measures.flatMap((measure) => spectrum.curves[measure].each.flat().filter((share) => share > 0));
  chart(root, {
    title: `Share of each direction of ${place}`,
    lines: lines("each"),
    cursor,
    height: 124,
    legend: false,
    x,
    y: { label: "each direction", log: true, min: Math.max(1e-8, Math.min(...shares)) },
  });
  drawTable(root, {
    caption: about.experts[k] > 1 ? RANGES : "What they hold, and how many hold",
    head: ["", `first\u00a0${rank}`, "90\u00a0%", "95\u00a0%", "99\u00a0%"],
    rows: measures.map((measure) => [measure, ...heldAndNeeded(spectrum.curves[measure], mine, rank)]),
  });
}

/**
 * What the directions within the rank hold, and how many directions hold 90, 95 and 99 percent.
 *
 * @type {(curve: Curves, i: number, rank: number) => (string | number)[]}
 */
function heldAndNeeded(curve, i, rank) {
  const last = curve.at[i].findLastIndex((direction) => direction <= rank); // the last that is drawn within the rank
  /** @type {(sums: number[]) => string} */
  const held = (sums) => percent(last < 0 ? 0 : sums[last]);
  const needed = curve.needed[i].map((n) => n ?? `over ${curve.at[i].at(-1)}`), [low, high] = curve.ends[i];
  return [rank ? held(curve.sums[i]) + (low ? ` (${held(low)} to ${held(high)})` : "") : "", ...needed];
}

/**
 * The words of a curve: for a cell of experts it is their mean.
 *
 * @type {(about: About, k: number, words: string) => string}
 */
const averaged = ({ experts }, k, words) => (experts[k] > 1 ? `${words}, mean of ${experts[k]} experts` : words);

/** @type {(root: Element, about: About, module: Module) => void} */
function drawShares(root, about, { k, place, rank }) {
  const lines = Object.entries(about.by_rank).map(([name, label], i) => {
    const shares = about.tabs.find((tab) => tab.name === name)?.curves?.[k] ?? [];
    const points = shares.map((share, n) => [n + 1, share ?? NaN]);
    return { label, term: name === "overlap" ? "overlap" : label, points, color: i + 2 };
  });
  if (!lines.length) return;
  chart(root, {
    title: `Shares by rank, ${place}`,
    lines,
    cursor: rank || null,
    height: 116,
    x: { label: "rank", min: 0, max: Math.max(...lines.map((line) => line.points.length)) + 1 },
    y: { label: "share", percent: true, min: 0, max: 1 },
  });
}

/**
 * Counts of resamples by rank, as [rank, count] in ascending order.
 *
 * @type {(root: Element, module: Module & {counts: number[][]}) => void}
 */
function drawResamples(root, { place, rank, counts }) {
  const all = counts.reduce((sum, [, count]) => sum + count, 0), ranks = counts.map(([r]) => r);
  const words = `Rank from resampled scores: ${ranks[0]} to ${ranks.at(-1)}`;
  explained(make("div", { class: "key" }, root, words), "resamples");
  chart(root, {
    title: `Ranks from resampled scores, ${place}`,
    lines: [],
    bars: counts.map(([r, count]) => [r, count / all]),
    cursor: rank || null,
    height: 100,
    x: { label: "rank", min: 0, max: 2 ** Math.max(3, Math.ceil(Math.log2(1.02 * Math.max(rank, ...ranks)))) },
    y: { label: "resamples", percent: true, min: 0, max: 1 },
  });
}
