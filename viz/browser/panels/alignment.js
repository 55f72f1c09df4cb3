// The panel "Alignment": two subspaces and a rank; the overlap of every module, its mean by rank and by projection.

import { chart } from "../chart.js";
import { choose, labeled } from "../controls.js";
import { make } from "../elements.js";
import { cellGrid } from "../grid.js";
import { mean, placeOf } from "../modules.js";
import { drawTable } from "../table.js";
import { number, percent } from "../text.js";

/** @import { Option } from "../controls.js" */
/** @import { About, GridCell } from "../traits.js" */
/** @import { Context } from "./panels.js" */

/**
 * Two subspaces up to a rank: overlaps of each module by rank, overlap by chance a rank, and three angles in degrees.
 *
 * @typedef {{sides: [string, string], rank: number, overlaps: number[][], chance: number[][], angles: number[][]}} Pair
 */

/** @type {(parent: Element, part: {pairs: Pair[]}, context: Context) => void} */
export function alignmentPart(parent, { pairs }, { about, model }) {
  const start = model?.get("compared") ?? {};
  const found = pairs.findIndex(({ sides }) => sides[0] === start.left && sides[1] === start.right);
  let pair = pairs[Math.max(0, found)], rank = Math.min(start.rank ?? 8, pair.rank);
  const bar = make("div", { class: "bar" }, parent);
  /** @type {Option[]} */
  const names = pairs.map(({ sides }, i) => [i, sides.join(" and ")]);
  choose(bar, "Pair", names, pairs.indexOf(pair), (i) => {
    pair = pairs[Number(i)];
    slider.max = String(pair.rank);
    rank = Math.min(rank, pair.rank);
    slider.value = String(rank);
    draw();
  });
  const box = labeled(bar, "Rank");
  const slider = make("input", { type: "range", min: 1, max: pair.rank, step: 1, value: rank }, box);
  const output = make("output", {}, box), below = make("div", {}, parent);
  slider.addEventListener("input", () => {
    rank = Number(slider.value);
    draw();
  });
  function draw() {
    output.textContent = String(rank);
    below.replaceChildren();
    drawPair(below, about, pair, rank);
  }
  draw();
}

/** @type {(parent: Element, about: About, pair: Pair, rank: number) => void} */
function drawPair(parent, about, pair, rank) {
  const known = about.names.flatMap((_, k) => (pair.overlaps[k].length ? [k] : []));
  /** @type {(r: number) => number} */
  const means = (r) => mean(known.map((k) => pair.overlaps[k][r - 1]));
  /** @type {(r: number) => number} */
  const chance = (r) => mean(known.map((k) => r * pair.chance[k][0]));
  /** @type {(k: number) => number} */
  const overlap = (k) => pair.overlaps[k][rank - 1];
  const sides = pair.sides.join(" and ");
  const top = known.reduce((best, k) => (overlap(k) > overlap(best) ? k : best), known[0]);
  const first = rank === 1 ? "direction overlaps" : `${rank} directions overlap`;
  const finding = `first ${first} by ${percent(means(rank))}, by chance ${percent(chance(rank))}`;
  const most = `most in ${placeOf(about, top)}, ${percent(overlap(top))}`;
  make("p", { class: "finding" }, parent, `${sides}: ${finding}; ${most}`);
  const side = make("div", { class: "pair" }, parent), map = make("div", {}, side), curve = make("div", {}, side);
  make("div", { class: "key" }, map, "Overlap of each module, percent: projections down, layers across");
  /** @type {GridCell[]} */
  const cells = known.map((k) => [about.row[k], about.column[k], overlap(k), (100 * overlap(k)).toFixed(0)]);
  const title = `Overlap of ${sides} at rank ${rank}`;
  cellGrid(map, { title, rows: about.rows, columns: about.columns, cells, most: 1, width: 640 });
  const ranks = Array.from({ length: pair.rank }, (_, i) => i + 1);
  chart(curve, {
    title: "Mean overlap by rank",
    lines: [
      { label: "mean of all modules", points: ranks.map((r) => [r, means(r)]) },
      { label: "by chance", dash: true, points: ranks.map((r) => [r, chance(r)]) },
    ],
    cursor: rank,
    x: { label: "rank", min: 1, max: Math.max(2, pair.rank) },
    y: { label: "overlap", percent: true, min: 0, max: 1 },
    height: 190,
  });
  drawProjections(parent, about, pair, rank, known);
}

/** @type {(parent: Element, about: About, pair: Pair, rank: number, known: number[]) => void} */
function drawProjections(parent, about, pair, rank, known) {
  const rows = about.rows.flatMap((name, j) => {
    const members = known.filter((k) => about.row[k] === j);
    if (!members.length) return [];
    const overlap = percent(mean(members.map((k) => pair.overlaps[k][rank - 1])));
    const chance = percent(mean(members.map((k) => rank * pair.chance[k][0])));
    const angles = [0, 1, 2].map((i) => number(mean(members.map((k) => pair.angles[k][i]))));
    return [[name, overlap, chance, ...angles]];
  });
  drawTable(parent, {
    caption: `By projection, means over layers; angles at rank ${pair.rank} in degrees`,
    head: ["projection", "overlap", "by chance", "smallest angle", "median", "largest"],
    rows,
  });
}
