// The panel "Side effects": the loss on the task and on other text at every scale that was measured, with the best
// point within a limit.

import { chart } from "../chart.js";
import { choose, copyable, labeled } from "../controls.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { capitalized, number, signedNumber } from "../text.js";

/** @import { Option } from "../controls.js" */
/** @import { Line } from "../chart.js" */

/** @type {[string, string, Partial<Line>][]} */
const LINES = [
  ["scale", "the adapter scaled", { dots: true }],
  ["left out", "several parts left out", { dots: true, dash: true }],
  ["part", "one part left out", { dots: true, name: "lone" }],
];

/**
 * A point that was measured: the loss on the task, the most that other text `lost`, in nats per token, what was left
 * out, and rows of a table.
 *
 * @typedef {{label: string, kind: string, scale: number, task: number, lost: number, without: string[],
 *   rows: string[][]}} Point
 */

/** @typedef {{at: number, limit: number}} Choice */
/** @typedef {{points: Point[], start: number, limit: number | null, choice?: Choice}} Part */

/** @type {(parent: Element, part: Part) => void} */
export function rescalingPart(parent, part) {
  const choice = (part.choice ??= { at: part.start, limit: part.limit ?? 0.05 }), { points } = part;
  const scales = numbers(points, "scale");
  const root = make("div", { class: "rescaling" }, parent), bar = make("div", { class: "bar" }, root);
  /** @type {(k: number | null) => void} */
  function choosePoint(k) {
    choice.at = k ?? choice.at;
    draw();
  }
  const toBest = () => choosePoint(best(points, choice.limit));
  const box = labeled(bar, "Scale"), range = { type: "range", min: 0, max: scales.length - 1, step: 1 };
  const slider = make("input", range, box), output = make("output", {}, box);
  slider.addEventListener("input", () => choosePoint(scales[Number(slider.value)]));
  /** @type {Option[]} */
  const parts = points.flatMap(({ kind, label }, k) => (kind === "scale" ? [] : [[k, label.replace("without ", "")]]));
  /** @type {(value: string) => void} */
  const leaveOut = (value) => choosePoint(value === "" ? scales.at(-1) ?? null : Number(value));
  const out = parts.length ? choose(bar, "Left out", [["", "nothing"], ...parts], null, leaveOut) : null;
  const field = { type: "number", step: 0.01, min: 0, value: choice.limit };
  const limit = make("input", field, labeled(bar, "Most that a text may lose, nats per token"));
  limit.addEventListener("change", () => {
    if (limit.value !== "" && limit.validity.valid) choice.limit = Number(limit.value);
    toBest();
  });
  make("button", { type: "button" }, bar, "Best within the limit").addEventListener("click", toBest);
  const below = make("div", { class: "pair" }, root), curve = make("div", {}, below), table = make("div", {}, below);
  const finding = make("p", { class: "finding", role: "status" }, root);
  const line = copyable(make("div", { class: "copied" }, root));
  function draw() {
    const point = points[choice.at], isScale = point.kind === "scale";
    if (isScale) slider.value = String(scales.indexOf(choice.at));
    output.textContent = isScale ? String(point.scale) : "1";
    if (out) out.value = isScale ? "" : String(choice.at);
    curve.replaceChildren();
    table.replaceChildren();
    drawPoints(curve, points, point, choice.limit);
    drawPoint(table, point);
    finding.textContent = conclude(points, choice);
    line.textContent = isScale && !point.scale
      ? "# scale 0 is the base model: there is nothing to write"
      : `rescaling.save_adapter("milder", rescaling.points[${choice.at}])  # ${point.label}`;
  }
  draw();
}

/**
 * The numbers of the points of a kind.
 *
 * @type {(points: Point[], kind: string) => number[]}
 */
const numbers = (points, kind) => points.flatMap((point, k) => (point.kind === kind ? [k] : []));

/**
 * The number of the point with the lowest task loss within the limit, or null.
 *
 * @type {(points: Point[], limit: number) => number | null}
 */
export function best(points, limit) {
  const within = points.flatMap((point, k) => (point.lost <= limit ? [k] : []));
  return within.reduce((a, k) => (points[k].task < points[a].task ? k : a), within[0]) ?? null;
}

/** @type {(parent: Element, points: Point[], chosen: Point, limit: number) => void} */
function drawPoints(parent, points, chosen, limit) {
  const lines = LINES.map(([kind, label, look]) => {
    const members = numbers(points, kind).map((k) => [points[k].lost, points[k].task]);
    return { label, points: members, ...look };
  });
  const mark = { label: "chosen", points: [[chosen.lost, chosen.task]], color: 6, name: "chosen" };
  chart(parent, {
    title: "Loss on the task by what other text loses",
    lines: [...lines.filter((line) => line.points.length), mark],
    cursor: limit,
    width: 520,
    height: 240,
    x: { label: "largest change of other text, nats per token" },
    y: { label: "task loss, nats per token", log: true },
  });
}

/** @type {(parent: Element, point: Point) => void} */
function drawPoint(parent, { label, without, rows }) {
  const caption = [capitalized(label), ...(without.length ? [without.join(", ")] : [])].join(": ");
  drawTable(parent, { caption, head: ["set", "loss", "change", "95 % interval over texts"], rows });
}

/** @type {(points: Point[], choice: Choice) => string} */
function conclude(points, { at, limit }) {
  const point = points[at], top = best(points, limit);
  const other = top === null
    ? "no point is within the limit"
    : `within the limit, ${points[top].label} is best, with a task loss of ${number(points[top].task)}`;
  const judgment = top === at ? "the lowest task loss within the limit" : other;
  const losses = `task loss ${number(point.task)}, other text at most ${signedNumber(point.lost, 3)} nats per token`;
  return `${capitalized(point.label)}: ${losses}; ${judgment}.`;
}
