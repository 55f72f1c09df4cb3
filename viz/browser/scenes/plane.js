// A plane with a cloud of points, colored by one number each, and lines through it.

import { isDark, largest, tint } from "../colors.js";
import { make, put } from "../elements.js";
import { unit } from "./inputs.js";

const SIZE = 300, MIDDLE = SIZE / 2; // pixels
const NAMED_AT = [1, 0.85, 0.7, 0.55]; // of the way from where a line passes to the edge of the square

/**
 * A line through the plane: where it passes, its angle, and its look; a mark has its name at an end.
 *
 * @typedef {{at: number[], angle: number, look: string, name?: string, isFlipped?: boolean}} Line
 */

/**
 * A plane while it is drawn; `locate` gives the point under the pointer.
 *
 * @typedef {{svg: SVGSVGElement, locate: (event: PointerEvent) => number[],
 *   draw: (points: number[][], numbers: number[], lines: Line[], mean: number[] | null) => void}} Plane
 */

/**
 * Where a plane has its points in pixels, by their coordinates: `x` from the left, `y` from the top.
 *
 * @typedef {{x: (v: number) => number, y: (v: number) => number, reach: number}} Scale
 */

/**
 * Draws a plane.
 *
 * @param {Element} parent
 * @param {string} label
 * @param {number} reach The largest coordinate that is shown.
 * @returns {Plane}
 */
export function plane(parent, label, reach) {
  const factor = MIDDLE / reach;
  /** @type {Scale} */
  const scale = { x: (v) => MIDDLE + factor * v, y: (v) => MIDDLE - factor * v, reach }, { x, y } = scale;
  const size = { width: SIZE, height: SIZE, viewBox: `0 0 ${SIZE} ${SIZE}` };
  const svg = make("svg", { class: "plane chart", role: "img", "aria-label": label, ...size }, parent);
  make("line", { class: "guide", x1: 0, x2: SIZE, y1: MIDDLE, y2: MIDDLE }, svg);
  make("line", { class: "guide", y1: 0, y2: SIZE, x1: MIDDLE, x2: MIDDLE }, svg);
  make("text", { svg: true, class: "tick", x: 6, y: 14 }, svg, label);
  const dots = make("g", {}, svg), drawn = make("g", {}, svg);
  /** @type {Plane["draw"]} */
  function draw(points, numbers, lines, mean) {
    while (dots.children.length < points.length) make("circle", { r: 2.6 }, dots);
    const most = largest(numbers), dark = isDark(svg);
    points.forEach(([a, b], i) => {
      const dot = dots.children[i];
      put(dot, "cx", x(a).toFixed(1));
      put(dot, "cy", y(b).toFixed(1));
      put(dot, "style", `fill: ${tint(numbers[i] / most, dark).fill}`);
    });
    drawn.replaceChildren();
    for (const line of lines) drawLine(drawn, line, scale);
    nameLines(drawn, lines, scale); // above all lines
    if (mean) make("circle", { class: "mean", cx: x(mean[0]), cy: y(mean[1]), r: 7 }, drawn);
  }
  /** @type {Plane["locate"]} */
  function locate(event) {
    const box = svg.getBoundingClientRect(), zoom = SIZE / (box.width || SIZE);
    const [right, down] = [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
    return [(right - MIDDLE) / factor, (MIDDLE - down) / factor];
  }
  return { svg, draw, locate };
}

/** @type {(parent: Element, line: Line, scale: Scale) => void} */
function drawLine(parent, { at: [a, b], angle, look }, { x, y, reach }) {
  const [cosine, sine] = unit(angle), far = 3 * reach;
  const ends = { x1: x(a - far * cosine), y1: y(b - far * sine), x2: x(a + far * cosine), y2: y(b + far * sine) };
  make("line", { class: `through ${look}`, ...ends }, parent);
  if (look.includes("turned")) {
    make("circle", { class: "grip", cx: x(a + 0.5 * reach * cosine), cy: y(b + 0.5 * reach * sine), r: 8 }, parent);
  }
}

/**
 * Names lines where they leave the square, at the other end or further in where another name is.
 *
 * @type {(parent: Element, lines: Line[], scale: Scale) => void}
 */
function nameLines(parent, lines, scale) {
  const taken = [{ x: 30, y: 14 }]; // the name of the plane
  for (const line of lines) {
    if (!line.name) continue;
    const sides = line.isFlipped ? [-1, 1] : [1, -1];
    const ends = NAMED_AT.flatMap((share) => sides.map((side) => pointOfLine(line, share * side, scale)));
    /** @type {(end: {x: number, y: number}) => boolean} */
    const isFree = (end) => taken.every(({ x, y }) => Math.abs(x - end.x) > 64 || Math.abs(y - end.y) > 15);
    const end = ends.find(isFree) ?? ends[0];
    taken.push(end);
    make("text", { svg: true, class: `mark-name ${line.look}`, ...end, "text-anchor": "middle" }, parent, line.name);
  }
}

/** @type {(line: Line, share: number, scale: Scale) => {x: number, y: number}} */
function pointOfLine({ at: [a, b], angle }, share, { x, y, reach }) {
  const [cosine, sine] = unit(angle), side = Math.sign(share);
  const away = share * roomAlong(a, b, side * cosine, side * sine, reach);
  /** @type {(pixels: number, margin: number) => number} */
  const inside = (pixels, margin) => Math.max(margin, Math.min(SIZE - margin, pixels));
  return { x: inside(x(a + away * cosine), 32), y: inside(y(b + away * sine) + 4, 14) };
}

/**
 * How far one can go from a point before leaving the square.
 *
 * @type {(a: number, b: number, cosine: number, sine: number, edge: number) => number}
 */
function roomAlong(a, b, cosine, sine, edge) {
  /** @type {(from: number, step: number) => number} */
  const room = (from, step) => (Math.abs(step) < 1e-9 ? Infinity : ((step > 0 ? edge : -edge) - from) / step);
  return Math.max(0, Math.min(room(a, cosine), room(b, sine)));
}
