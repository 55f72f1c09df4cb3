import { chart } from "../chart.js";
import { make } from "../elements.js";
import { cellGrid } from "../grid.js";
import { drawTable } from "../table.js";
import { number, percent } from "../text.js";

// Two sides and a rank: the overlap of every module, its mean by rank, and the means by projection.
export function alignmentPart(parent, { pairs }, { about, model }) {
  const start = model?.get("compared") ?? {},
    found = pairs.findIndex(({ sides }) => sides[0] === start.left && sides[1] === start.right);
  let pair = pairs[Math.max(0, found)], rank = Math.min(start.rank ?? 8, pair.rank);
  const bar = make("div", { class: "bar" }, parent),
    box = make("label", { class: "control" }, bar, "Pair"),
    select = make("select", {}, box);
  pairs.forEach(({ sides }, i) => {
    make("option", { value: i }, select, sides.join(" and ")).selected = pairs[i] === pair;
  });
  const slide = make("label", { class: "control" }, bar, "Rank"),
    slider = make("input", { type: "range", min: 1, max: pair.rank, step: 1, value: rank }, slide);
  const output = make("output", {}, slide), below = make("div", {}, parent);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  function draw() {
    output.textContent = rank;
    below.replaceChildren();
    const known = about.names.flatMap((_, k) => (pair.overlaps[k].length ? [k] : [])),
      at = (k) => pair.overlaps[k][rank - 1];
    const top = known.reduce((best, k) => (at(k) > at(best) ? k : best), known[0]),
      place = (k) => `layer ${about.columns[about.column[k]]} ${about.rows[about.row[k]]}`;
    const chance = (k) => rank * pair.chance[k][0];
    make(
      "p",
      { class: "finding" },
      below,
      `${pair.sides.join(" and ")}: first ${rank === 1 ? "direction overlaps" : `${rank} directions overlap`} by ${
        percent(mean(known.map(at)))
      }, ` +
        `by chance ${percent(mean(known.map(chance)))}; most in ${place(top)}, ${percent(at(top))}`,
    );
    const side = make("div", { class: "pair" }, below),
      cells = known.map((k) => [about.row[k], about.column[k], at(k), (100 * at(k)).toFixed(0)]);
    const map = make("div", {}, side), curve = make("div", {}, side), ranks = [...Array(pair.rank).keys()];
    make("div", { class: "key" }, map, "Overlap of each module, percent: projections down, layers across");
    cellGrid(map, {
      title: `Overlap of ${pair.sides.join(" and ")} at rank ${rank}`,
      rows: about.rows,
      columns: about.columns,
      cells,
      most: 1,
      width: 640,
    });
    chart(curve, {
      title: "Mean overlap by rank",
      cursor: rank,
      x: { label: "rank", min: 1, max: Math.max(2, pair.rank) },
      y: { label: "overlap", percent: true, min: 0, max: 1 },
      height: 190,
      lines: [{
        label: "mean of all modules",
        points: ranks.map((r) => [r + 1, mean(known.map((k) => pair.overlaps[k][r]))]),
      }, {
        label: "by chance",
        dash: true,
        points: ranks.map((r) => [r + 1, mean(known.map((k) => (r + 1) * pair.chance[k][0]))]),
      }],
    });
    const rows = about.rows.flatMap((name, j) => {
      const members = known.filter((k) => about.row[k] === j),
        angle = (i) => number(mean(members.map((k) => pair.angles[k][i])));
      return members.length
        ? [[name, percent(mean(members.map(at))), percent(mean(members.map(chance))), angle(0), angle(1), angle(2)]]
        : [];
    });
    drawTable(below, {
      caption: `By projection, means over layers; angles at rank ${pair.rank} in degrees`,
      head: ["projection", "overlap", "by chance", "smallest angle", "median", "largest"],
      rows,
    });
  }
  select.addEventListener("change", () => {
    pair = pairs[Number(select.value)];
    slider.max = pair.rank;
    rank = Math.min(rank, pair.rank);
    slider.value = rank;
    draw();
  });
  slider.addEventListener("input", () => {
    rank = Number(slider.value);
    draw();
  });
  draw();
}
