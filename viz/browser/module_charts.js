import { chart } from "./chart.js";
import { make } from "./elements.js";
import { explained } from "./explain.js";
import { drawTable } from "./table.js";
import { percent } from "./text.js";

// Beside the map: spectra with a line at the rank, shares by rank, and ranks from resampled scores.
export function moduleCharts(about, choice) {
  const root = make("div", { class: "module" });
  let current = {};
  function draw(state) { // { k, place, rank, counts }
    current = state;
    const { k, place, rank, counts } = state;
    root.replaceChildren();
    if (about.spectra.length) drawSpectrum(k, place, rank);
    const lines = Object.entries(about.by_rank).map(([name, label]) => {
      const values = about.tabs.find((tab) => tab.name === name).curves[k];
      return { label, term: name === "overlap" ? "overlap" : label, points: values.map((value, i) => [i + 1, value]) };
    });
    if (lines.length) {
      chart(root, {
        title: `Shares by rank, ${place}`,
        lines: lines.map((one, i) => ({ ...one, color: i + 2 })),
        cursor: rank || null,
        height: 116,
        x: { label: "rank", min: 0, max: Math.max(...lines.map((one) => one.points.length)) + 1 },
        y: { label: "share", percent: true, min: 0, max: 1 },
      });
    }
    if (counts?.length > 1) {
      const all = counts.reduce((sum, [, count]) => sum + count, 0),
        far = 2 ** Math.max(3, Math.ceil(Math.log2(1.02 * Math.max(rank, ...counts.map(([r]) => r)))));
      explained(
        make("div", { class: "key" }, root, `Rank from resampled scores: ${counts[0][0]} to ${counts.at(-1)[0]}`),
        "resamples",
      );
      chart(root, {
        title: `Ranks from resampled scores, ${place}`,
        lines: [],
        bars: counts.map(([r, count]) => [r, count / all]),
        cursor: rank || null,
        height: 100,
        x: { label: "rank", min: 0, max: far },
        y: { label: "resamples", percent: true, min: 0, max: 1 },
      });
    }
  }
  function drawSpectrum(k, place, rank) {
    const one = about.spectra[Math.min(choice.spectrum, about.spectra.length - 1)], mine = one.index[k];
    if (about.spectra.length > 1) {
      const label = make("label", { class: "control" }, root, "Spectrum"), select = make("select", {}, label);
      about.spectra.forEach((other, i) => {
        make("option", { value: i }, select, other.label).selected = i === choice.spectrum;
      });
      select.addEventListener("change", () => {
        choice.spectrum = Number(select.value);
        draw(current);
        root.querySelector("select").focus();
      });
    }
    make("div", { class: "key" }, root, one.meaning[0].toUpperCase() + one.meaning.slice(1));
    const whats = Object.keys(one.curves),
      others = [
        ...new Set(
          about.names.flatMap((
            _,
            other,
          ) => (about.row[other] === about.row[k] && one.index[other] !== mine ? [one.index[other]] : [])),
        ),
      ];
    const colors = { energy: 0, variance: 1 },
      at = (what, i, values) =>
        one.curves[what].at[i].map((direction, n) => [direction, one.curves[what][values][i][n]]);
    const gray = (values) => others.map((i) => ({ gray: true, points: at(whats[0], i, values) }));
    const held = (what) => { // the last direction drawn within the rank
      const n = one.curves[what].at[mine].findLastIndex((direction) => direction <= rank);
      return n < 0 ? 0 : one.curves[what].sums[mine][n];
    };
    const far = Math.max(2, ...one.curves[whats[0]].at.map((directions) => directions.at(-1))),
      x = { label: "direction", log: true, min: 1, max: far };
    const lines = (
      values,
    ) => [
      ...gray(values),
      ...whats.map((what) => ({ label: what, color: colors[what], points: at(what, mine, values) })),
    ];
    chart(root, {
      title: `Cumulative shares of the directions of ${place}`,
      lines: lines("sums"),
      cursor: rank || null,
      height: 158,
      x: { ...x, label: "first directions taken" },
      y: { label: "cumulative share", percent: true, min: 0, max: 1 },
    });
    chart(root, {
      title: `Share of each direction of ${place}`,
      lines: lines("each"),
      cursor: rank || null,
      height: 124,
      legend: false,
      x,
      y: {
        label: "each direction",
        log: true,
        min: Math.max(1e-8, Math.min(...whats.flatMap((what) => one.curves[what].each.flat().filter((v) => v > 0)))),
      },
    });
    const rows = whats.map((
      what,
    ) => [
      what,
      rank ? percent(held(what)) : "",
      ...one.curves[what].needed[mine].map((n) => n ?? `over ${one.curves[what].at[mine].at(-1)}`),
    ]);
    drawTable(root, {
      caption: "What they hold, and how many hold",
      head: ["", `first\u00a0${rank}`, "90\u00a0%", "95\u00a0%", "99\u00a0%"],
      rows,
    });
  }
  return { root, draw };
}
