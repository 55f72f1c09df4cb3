// A budget of ranks that one hands out: a bar per layer, up to a limit.

import { make, put, write } from "../elements.js";
import { onDrag } from "./slider.js";

/** @typedef {{g: SVGGElement, units: SVGRectElement[], note: SVGTextElement}} Bar */
/** @typedef {{draw: (ranks: number[], notes: string[]) => void}} RankBars A note is the text below a bar. */

const UNIT = 20, WIDE = 62, GAP = 22, TOP = 8; // pixels
/** @type {Record<string, number>} */
const STEPS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, "+": 1, "=": 1, "-": -1 };

/**
 * The bars; a bar takes no more than is left of the budget, and the line above them says so when one asks for more.
 *
 * @param {Element} parent
 * @param {{layers: number, budget: number}} shape
 * @param {(ranks: number[]) => void} action
 * @returns {RankBars}
 */
export function rankBars(parent, { layers, budget }, action) {
  const left = make("p", { class: "left", role: "status" }, parent);
  const width = layers * (WIDE + GAP), height = TOP + budget * UNIT + 40;
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const svg = make("svg", { class: "ranks", role: "group", "aria-label": "Ranks by layer", ...size }, parent);
  const bars = Array.from({ length: layers }, (_, l) => drawBar(svg, l, budget));
  /** @type {number[]} */
  let ranks = Array(layers).fill(0);
  let isRefused = false;
  const rest = () => budget - ranks.reduce((sum, value) => sum + value, 0);
  /** @type {(l: number, rank: number) => void} */
  function set(l, rank) {
    const most = rest() + ranks[l], next = Math.max(0, Math.min(rank, most));
    isRefused = Math.min(rank, budget) > most;
    if (next !== ranks[l]) action(ranks.with(l, next));
    else writeRest();
  }
  function writeRest() {
    const reason = isRefused ? ": to raise a layer, lower another one first" : "";
    write(left, `${rest()} of ${budget} ranks left${reason}`);
  }
  /** @type {Record<string, number>} */
  const ends = { Home: 0, End: budget };
  bars.forEach(({ g }, l) =>
    g.addEventListener("keydown", (event) => {
      const rank = ends[event.key] ?? (event.key in STEPS ? ranks[l] + STEPS[event.key] : null);
      if (rank === null) return;
      set(l, rank);
      event.preventDefault();
    })
  );
  /** @type {(event: PointerEvent) => number | null} */
  const grip = ({ target }) => {
    const l = bars.findIndex(({ g }) => target instanceof Node && g.contains(target));
    if (l >= 0) bars[l].g.focus({ preventScroll: true });
    return l >= 0 ? l : null;
  };
  onDrag(svg, grip, (event, l) => {
    const box = svg.getBoundingClientRect(), up = ((event.clientY - box.top) * height) / (box.height || height);
    set(l, Math.round(budget - (up - TOP) / UNIT + 0.25));
  });
  /** @type {RankBars["draw"]} */
  function draw(values, notes) {
    ranks = values;
    writeRest();
    bars.forEach((bar, l) => paintBar(bar, ranks[l], notes[l]));
  }
  return { draw };
}

/** @type {(svg: SVGSVGElement, l: number, budget: number) => Bar} */
function drawBar(svg, l, budget) {
  const x = l * (WIDE + GAP) + GAP / 2, bottom = TOP + budget * UNIT;
  const limits = { "aria-valuemin": 0, "aria-valuemax": budget, "aria-valuenow": 0 };
  const g = make("g", { role: "slider", tabindex: 0, "aria-label": `Rank of layer ${l + 1}`, ...limits }, svg);
  make("rect", { class: "ground", x, y: TOP, width: WIDE, height: budget * UNIT }, g);
  const units = Array.from({ length: budget }, (_, k) => {
    const at = { x: x + 3, y: bottom - (k + 1) * UNIT + 2, width: WIDE - 6, height: UNIT - 3, rx: 2 };
    return make("rect", at, g);
  });
  const middle = { svg: true, x: x + WIDE / 2, "text-anchor": "middle" };
  make("text", { ...middle, class: "tick", y: bottom + 15 }, g, `layer ${l + 1}`);
  const note = make("text", { ...middle, class: "tick", y: bottom + 30 }, g);
  return { g, units, note };
}

/** @type {(bar: Bar, rank: number, words: string) => void} */
function paintBar({ g, units, note }, rank, words) {
  put(g, "aria-valuenow", rank);
  units.forEach((unit, k) => put(unit, "class", k < rank ? "unit taken" : "unit"));
  write(note, words);
}
