// Lines and bars on axes.

import { make } from "./elements.js";
import { explained } from "./explain.js";
import { MINUS } from "./text.js";

/** @import { Attributes } from "./elements.js" */
/** @import { Losses } from "./traits.js" */

const LEFT = 50, RIGHT = 8, TOP = 6, BOTTOM = 32; // pixels around the lines
const LETTER = 7.4, APART = 13; // pixels of a letter of a name, and between two names
const WIDE = 10; // losses that span more than this factor are on a logarithmic axis
const RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";

/**
 * A line. `name` is its class, `color` the index of one, `term` the words by which it is explained.
 *
 * @typedef {{label?: string, points: number[][], name?: string, color?: number, term?: string, dots?: boolean,
 *   dash?: boolean, thin?: boolean, gray?: boolean}} Line
 */

/**
 * An axis.
 *
 * @typedef {{label: string, log?: boolean, percent?: boolean, min?: number, max?: number}} Axis
 */

/** @typedef {Axis & {min: number, max: number}} BoundedAxis An axis whose ends are given. */

/**
 * What a chart shows.
 *
 * With `named`, lines have their labels at their ends in place of a legend.
 *
 * @typedef {{title: string, lines: Line[], bars?: number[][], x: Axis, y: Axis, cursor?: number | null,
 *   width?: number, height?: number, legend?: boolean, named?: boolean}} Contents
 */

/**
 * Values of ticks: 1, 2, 5, 10 ..., thinned to powers of ten if there are more than `most`.
 *
 * @type {(low: number, high: number, log: boolean | undefined, most: number) => number[]}
 */
export function ticks(low, high, log, most) {
  if (log) return logTicks(low, high, most);
  const ticks = [], power = 10 ** Math.floor(Math.log10((high - low) / most || 1));
  const step = ([1, 2, 5].find((f) => f * power >= (high - low) / most) ?? 10) * power;
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) ticks.push(+v.toPrecision(12));
  return ticks;
}

/** @type {(low: number, high: number, most: number) => number[]} */
function logTicks(low, high, most) {
  const all = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    for (const f of [1, 2, 5]) all.push(+`${f}e${p}`);
  }
  const inside = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  if (inside.length < 2) return ticks(low, high, false, most);
  if (inside.length <= most) return inside;
  const powers = inside.filter((v) => v.toExponential().startsWith("1e")), every = Math.ceil(powers.length / most);
  return powers.filter((_, i) => i % every === 0);
}

/**
 * The text of a tick; on a logarithmic axis small and large ones are powers of ten.
 *
 * @type {(axis: Axis, v: number) => string}
 */
export function tickText(axis, v) {
  if (axis.percent) return `${+(100 * v).toFixed(4)}\u00a0%`;
  if (!axis.log || (v >= 0.01 && v <= 99999)) return String(+v.toPrecision(6)).replace("-", MINUS);
  const [digits, power] = v.toExponential().split("e");
  const raised = [...String(Number(power))].map((c) => (c === "-" ? "\u207b" : RAISED[Number(c)])).join("");
  return `${digits === "1" ? "" : `${digits}\u00b7`}10${raised}`;
}

/**
 * The ends of an axis, apart even if all values are the same.
 *
 * @type {(axis: Axis, values: number[]) => [number, number]}
 */
function span(axis, values) {
  const low = axis.min ?? Math.min(...values), high = axis.max ?? Math.max(...values);
  if (low !== high) return [low, high];
  return axis.log ? [low / 2, high * 2] : [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
}

/** @type {(v: number, ends: [number, number], log: boolean | undefined) => number} */
function place(v, [low, high], log) {
  return log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
}

/**
 * The value on the x axis of a chart under a pointer, within the ends of the axis.
 *
 * @type {(svg: SVGSVGElement, axis: BoundedAxis, clientX: number) => number}
 */
export function valueUnder(svg, { min, max, log }, clientX) {
  const box = svg.getBoundingClientRect(), width = Number(svg.getAttribute("width"));
  const pixels = ((clientX - box.left) * width) / (box.width || width) - LEFT;
  const share = Math.max(0, Math.min(1, pixels / (width - LEFT - RIGHT)));
  return log ? min * (max / min) ** share : min + share * (max - min);
}

/**
 * What a chart is drawn in: its axes with their ends, and where a value is `at` along the one and `up` the other.
 *
 * @typedef {{svg: SVGSVGElement, x: Axis, y: Axis, xs: [number, number], ys: [number, number],
 *   at: (v: number) => number, up: (v: number) => number, right: number, height: number}} Frame
 */

/**
 * A chart.
 *
 * @param {Element} parent
 * @param {Contents} contents
 */
export function chart(parent, contents) {
  const { title, lines, bars = [], x, y, width = 340, height = 150, legend = true, named = false } = contents;
  /** @type {(point: number[]) => boolean} */
  const usable = ([a, b]) => Number.isFinite(a) && Number.isFinite(b) && (!x.log || a > 0) && (!y.log || b > 0);
  const points = lines.flatMap((line) => line.points).concat(bars).filter(usable);
  if (legend && !named) drawKey(parent, lines);
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const svg = make("svg", { class: "chart", role: "group", ...size, "aria-label": title }, parent);
  if (!points.length) return svg;
  const right = width - (named ? RIGHT + LETTER * Math.max(...lines.map(({ label = "" }) => label.length)) : RIGHT);
  const xs = span(x, points.map(([a]) => a)), ys = span(y, points.map(([, b]) => b));
  /** @type {(v: number) => number} */
  const at = (v) => LEFT + (right - LEFT) * place(v, xs, x.log);
  /** @type {(v: number) => number} */
  const up = (v) => TOP + (height - TOP - BOTTOM) * (1 - place(v, ys, y.log));
  /** @type {Frame} */
  const frame = { svg, x, y, xs, ys, at, up, right, height };
  drawAxes(frame);
  drawBars(frame, bars, contents.cursor ?? null);
  const spare = 1e-6 * (ys[1] - ys[0]); // of shares that add up to 1 and a little
  /** @type {(point: number[]) => boolean} */
  const isInside = ([, b]) => b >= ys[0] - spare && b <= ys[1] + spare;
  let color = 0;
  const drawn = lines.map((line) => {
    const look = line.gray ? "gray" : `c${line.color ?? color++} ${line.name ?? ""}`;
    const inside = line.points.filter(usable).filter(isInside);
    drawLine(frame, line, look, inside);
    return { line, look, end: inside.at(-1) };
  });
  if (named) drawNames(frame, drawn);
  return svg;
}

/** @type {(parent: Element, lines: Line[]) => void} */
function drawKey(parent, lines) {
  const inColor = lines.filter((line) => !line.gray), named = inColor.filter((line) => line.label);
  if (!named.length) return;
  const key = make("div", { class: "key" }, parent);
  for (const line of named) {
    const entry = make("span", { class: `c${line.color ?? inColor.indexOf(line)} ${line.name ?? ""}` }, key);
    make("span", { class: `swatch${line.dash ? " dash" : ""}${line.thin ? " thin" : ""}` }, entry);
    entry.append(line.label ?? "");
    explained(entry, line.term ?? line.label);
  }
}

/** @type {(frame: Frame) => void} */
function drawAxes({ svg, x, y, xs, ys, at, up, right, height }) {
  const bottom = height - BOTTOM;
  /** @type {(look: string, ends: Attributes) => SVGLineElement} */
  const line = (look, ends) => make("line", { class: look, ...ends }, svg);
  /** @type {(attributes: Attributes, text: string) => SVGTextElement} */
  const tick = (attributes, text) => make("text", { svg: true, class: "tick", ...attributes }, svg, text);
  for (const v of ticks(ys[0], ys[1], y.log, y.log ? 6 : 4)) {
    line("guide", { x1: LEFT, x2: right, y1: up(v), y2: up(v) });
    tick({ x: LEFT - 5, y: up(v) + 3.5, "text-anchor": "end" }, tickText(y, v));
  }
  for (const v of ticks(xs[0], xs[1], x.log, Math.floor((right - LEFT) / 38))) {
    line("axis", { x1: at(v), x2: at(v), y1: bottom, y2: bottom + 4 });
    tick({ x: at(v), y: bottom + 14, "text-anchor": "middle" }, tickText(x, v));
  }
  line("axis", { x1: LEFT, x2: right, y1: bottom, y2: bottom });
  line("axis", { x1: LEFT, x2: LEFT, y1: TOP, y2: bottom });
  explained(tick({ x: (LEFT + right) / 2, y: height - 3, "text-anchor": "middle" }, x.label));
  const turned = `translate(10 ${(TOP + bottom) / 2}) rotate(-90)`;
  explained(tick({ transform: turned, "text-anchor": "middle" }, y.label));
}

/** @type {(frame: Frame, bars: number[][], cursor: number | null) => void} */
function drawBars({ svg, xs, ys, at, up, height }, bars, cursor) {
  const wide = bars.length ? Math.max(1, 0.8 * (at(xs[0] + 1) - at(xs[0]))) : 0;
  for (const [a, b] of bars) {
    make("rect", { class: "bar", x: at(a) - wide / 2, width: wide, y: up(b), height: up(ys[0]) - up(b) }, svg);
  }
  if (cursor !== null && cursor >= xs[0] && cursor <= xs[1]) {
    make("line", { class: "cursor", x1: at(cursor), x2: at(cursor), y1: TOP, y2: height - BOTTOM }, svg);
  }
}

/** @type {(frame: Frame, line: Line, look: string, points: number[][]) => void} */
function drawLine({ svg, at, up }, line, look, points) {
  const path = points.map(([a, b], k) => `${k ? "L" : "M"}${at(a).toFixed(1)} ${up(b).toFixed(1)}`).join("");
  make("path", { class: `curve ${look}${line.thin ? " thin" : ""}${line.dash ? " dash" : ""}`, d: path }, svg);
  if (!line.dots && (points.length !== 1 || line.gray)) return;
  for (const [a, b] of points) make("circle", { class: look, cx: at(a), cy: up(b), r: 2.8 }, svg);
}

/**
 * Labels at the ends of their lines, moved apart.
 *
 * @type {(frame: Frame, drawn: {line: Line, look: string, end: number[] | undefined}[]) => void}
 */
function drawNames({ svg, at, up, height }, drawn) {
  const named = drawn.flatMap(({ line, look, end }) => (line.label && end ? [{ line, look, end }] : []));
  const places = spread(named.map(({ end }) => up(end[1])), APART, height - BOTTOM);
  named.forEach(({ line: { label = "", term = label }, look, end }, i) => {
    const spot = { class: `end ${look}`, x: at(end[0]) + 6, y: places[i] + 4 };
    explained(make("text", { svg: true, ...spot }, svg, label), term);
  });
}

/**
 * Places moved apart, so that they have at least a distance and none is beyond the most; their order stays.
 *
 * @type {(places: number[], distance: number, most: number) => number[]}
 */
export function spread(places, distance, most) {
  const moved = [...places], order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  order.forEach((i, n) => {
    if (n) moved[i] = Math.max(moved[i], moved[order[n - 1]] + distance);
  });
  let edge = most;
  for (const i of order.reverse()) {
    moved[i] = Math.min(moved[i], edge);
    edge = moved[i] - distance;
  }
  return moved;
}

/**
 * The curves of one or several trainings: training losses thin, held-out losses with dots and their name.
 *
 * @type {(parent: Element, arms: Record<string, Partial<Losses>>, width: number) => SVGSVGElement}
 */
export function lossCurves(parent, arms, width) {
  const names = Object.keys(arms), isAlone = names.length === 1;
  const lines = names.flatMap((name, i) => {
    const { losses = [], held = [] } = arms[name];
    const look = { name: isAlone ? "" : `arm${i}`, dash: i === 1 }; // a later curve hides no earlier one
    return [
      { label: isAlone ? "training" : "", term: "training loss", points: losses, thin: true, ...look, color: i },
      {
        label: isAlone ? "validation" : name,
        term: "held-out loss",
        points: held,
        dots: true,
        ...look,
        color: isAlone ? 1 : i,
      },
    ];
  }).filter((line) => line.points.length || !isAlone);
  const values = lines.flatMap(({ points }) => points.map(([, loss]) => loss));
  const low = Math.min(...values), steps = Math.max(1, ...names.map((name) => arms[name].planned ?? 1));
  const isThin = !isAlone && names.some((name) => arms[name].losses?.length);
  return chart(parent, {
    title: `Losses of ${names.join(" and ")} over the optimizer steps`,
    lines,
    x: { label: "optimizer step", min: 0, max: steps },
    y: {
      label: isThin ? "loss, nats (thin: training)" : "loss, nats",
      log: low > 0 && Math.max(...values) > WIDE * low,
    },
    width,
    height: 190,
    named: true,
  });
}
