// Scene 1: what an adapter reads. A line that one turns by hand, and what it catches.

import { button, group } from "../controls.js";
import { make, write } from "../elements.js";
import { percent } from "../text.js";
import { dragChart } from "./drag_chart.js";
import { inputRows, leadingAngles, makeInputs, measure, randomShares, sharesAt, unit } from "./inputs.js";
import { dot, meanRow } from "./matrix.js";
import { plane } from "./plane.js";
import { shareReadings } from "./readings.js";
import { readsSteps } from "./reads_steps.js";
import { onDrag, slider } from "./slider.js";

/** @import { BoundedAxis, Contents, Line } from "../chart.js" */
/** @import { DragChart } from "./drag_chart.js" */
/** @import { Angles, Inputs, Measured, Shares } from "./inputs.js" */
/** @import { Plane } from "./plane.js" */
/** @import { Range } from "./slider.js" */
/** @import { Scene } from "./story.js" */

/** @type {{key: keyof Shares, name: string, formula: string, from: number}[]} */
const MEASURES = [
  { key: "input", name: "of the inputs’ variance", formula: "aᵀ C a / tr C", from: 0 },
  { key: "output", name: "of the outputs’ variance", formula: "‖W C a‖² / (aᵀ C a · tr W C Wᵀ)", from: 2 },
  { key: "gradient", name: "of the squared gradient", formula: "‖G a‖² / ‖G‖²", from: 3 },
];
/** @typedef {keyof Angles | "random"} MarkKey */
/** @typedef {{key: MarkKey, name: string, look: string, from: number, isFlipped?: boolean}} Mark */
/** @type {Mark[]} */
const MARKS = [
  { key: "principal", name: "principal", look: "c0", from: 1 },
  { key: "wc", name: "W C", look: "c1", from: 2 },
  { key: "gradient", name: "gradient", look: "c2", from: 3 },
  { key: "random", name: "random", look: "c5", from: 1, isFlipped: true },
];
const OUTPUTS_FROM = 1, MEAN_FROM = 4, DIMENSION_FROM = 5; // steps
const REACH = 5.5, DIMENSIONS = [2, 3, 5, 8, 12, 24, 48, 96, 192, 384, 576];

/**
 * What the scene shows: the inputs with the mean that one gave them, the angle of the line, whether the mean is
 * subtracted, the step of the text, and the number of dimensions.
 *
 * @typedef {{inputs: Inputs, seed: number, angle: number, centered: boolean, step: number, dimension: number}} State
 */

/** @typedef {(values: Partial<State>) => void} Change */

/** The angle of the line at first: of whole degrees, as on its slider. */
const START = Math.PI / 6;

/** @type {(angle: number) => number} */
const degrees = (angle) => Math.round((180 * angle) / Math.PI);

/**
 * The scene.
 *
 * @param {Element} parent Where its picture goes.
 * @param {number} seed
 * @returns {Scene}
 */
export function readsScene(parent, seed) {
  const inputs = makeInputs(seed);
  /** @type {State} */
  const state = { inputs, seed, angle: START, centered: true, step: 0, dimension: 576 };
  const plain = make("div", { class: "picture" }, parent), many = make("div", { class: "picture" }, parent);
  const redraw = drawTurning(plain, state), drawMany = drawDimensions(many, state);
  /** @type {(step: number) => void} */
  function show(step) {
    state.step = step;
    plain.hidden = step >= DIMENSION_FROM;
    many.hidden = !plain.hidden;
    if (step < MEAN_FROM) state.centered = true;
    if (many.hidden) redraw();
    else drawMany();
  }
  return { steps: readsSteps(seed), show, stop: () => {} };
}

/**
 * The planes, the curves and the readings; returns what draws them again.
 *
 * @type {(root: Element, state: State) => () => void}
 */
function drawTurning(root, state) {
  const planes = make("div", { class: "planes" }, root);
  const left = plane(planes, "inputs x", REACH), right = plane(planes, "outputs", 5.5);
  left.svg.classList.add("turning");
  const bar = make("div", { class: "bar" }, root);
  /** @type {Change} */
  function change(values) {
    Object.assign(state, values);
    redraw();
  }
  /** @type {(angle: number) => void} */
  const turn = (angle) => change({ angle: (Math.PI * ((degrees(angle) + 180) % 180)) / 180 });
  /** @type {Range} */
  const range = { min: 0, max: 179, step: 1, text: (value) => `${value}°` };
  const angle = slider(bar, "Angle of a", range, (value) => turn((Math.PI * value) / 180));
  /** @type {(mark: Mark) => void} */
  const turnTo = ({ key }) => turn(anglesOf(state, measure(state.inputs, state.centered))[key]);
  const followMarks = markButtons(bar, state, turnTo);
  const followMean = meanControls(bar, state, change);
  const readings = shareReadings(root, MEASURES.map((measure, color) => ({ ...measure, color })));
  const curves = dragChart(root, (value) => turn((Math.PI * value) / 180));
  /** @type {(event: PointerEvent) => "mean" | "line" | null} */
  function grip(event) {
    const mark = markNamed(event.target);
    if (!mark) return gripAt(state, left.locate(event));
    turnTo(mark);
    return null;
  }
  onDrag(left.svg, grip, (event, held) => {
    const [x, y] = left.locate(event);
    if (held === "mean") return change({ inputs: { ...state.inputs, mean: clipped([x, y]) } });
    const [a, b] = centerOf(state);
    turn(Math.atan2(y - b, x - a));
  });
  function redraw() {
    const found = measure(state.inputs, state.centered);
    angle.set(degrees(state.angle) % 180);
    followMarks();
    followMean();
    drawPlanes(state, found, left, right);
    right.svg.toggleAttribute("hidden", state.step < OUTPUTS_FROM);
    const shares = sharesAt(found, state.angle);
    readings(MEASURES.map(({ key, from }) => (state.step >= from ? shares[key] : null)));
    drawCurves(curves, state, found);
  }
  return redraw;
}

/** @type {(state: State, found: Measured) => Record<MarkKey, number>} */
const anglesOf = ({ inputs }, found) => ({ ...leadingAngles(found), random: inputs.random });

/**
 * A button for each mark, that turns the line to it; returns what shows those of the step.
 *
 * @type {(bar: Element, state: State, turnTo: (mark: Mark) => void) => () => void}
 */
function markButtons(bar, state, turnTo) {
  const row = group(bar, "Turn a to");
  row.append("Turn a to");
  const buttons = MARKS.map((mark) => button(row, mark.name, "", () => turnTo(mark)));
  return () => {
    row.hidden = state.step < Math.min(...MARKS.map(({ from }) => from));
    MARKS.forEach(({ from }, i) => buttons[i].hidden = state.step < from);
  };
}

/**
 * The mark whose name in the picture was pressed.
 *
 * @type {(target: EventTarget | null) => Mark | undefined}
 */
function markNamed(target) {
  const name = target instanceof Element ? target.closest(".mark-name") : null;
  return MARKS.find((mark) => mark.name === name?.textContent);
}

/** @type {(point: number[]) => number[]} */
const clipped = (point) => point.map((v) => Math.max(-3, Math.min(3, v)));

/**
 * Where the line passes: deviations from the mean are read if it is subtracted.
 *
 * @type {(state: State) => number[]}
 */
const centerOf = ({ inputs, centered }) => (centered ? meanRow(inputRows(inputs)) : [0, 0]);

/**
 * What a press on the plane holds: the mean if it is near, else the line.
 *
 * @type {(state: State, point: number[]) => "mean" | "line"}
 */
function gripAt({ inputs, step }, point) {
  const [a, b] = meanRow(inputRows(inputs));
  return step >= MEAN_FROM && Math.hypot(point[0] - a, point[1] - b) < 0.45 ? "mean" : "line";
}

/**
 * Whether the mean is subtracted, and where it is; returns what has the controls follow.
 *
 * @type {(bar: Element, state: State, change: Change) => () => void}
 */
function meanControls(bar, state, change) {
  const box = make("label", { class: "control" }, bar), tick = make("input", { type: "checkbox" }, box);
  box.append("Subtract the mean");
  tick.addEventListener("change", () => change({ centered: tick.checked }));
  /** @type {Range} */
  const range = { min: -3, max: 3, step: 0.1, text: (value) => value.toFixed(1) };
  const sliders = ["Mean, across", "Mean, up"].map((label, i) =>
    slider(
      bar,
      label,
      range,
      (value) => change({ inputs: { ...state.inputs, mean: state.inputs.mean.with(i, value) } }),
    )
  );
  return () => {
    tick.checked = state.centered;
    for (const part of [box, ...sliders.map((each) => each.box)]) part.hidden = state.step < MEAN_FROM;
    sliders.forEach((each, i) => each.set(state.inputs.mean[i]));
  };
}

/** @type {(state: State, found: Measured, left: Plane, right: Plane) => void} */
function drawPlanes(state, found, left, right) {
  const { inputs, angle, step } = state, rows = inputRows(inputs), center = centerOf(state), a = unit(angle);
  const numbers = rows.map((row) => dot(a, row.map((value, i) => value - center[i])));
  const angles = anglesOf(state, found);
  const marks = MARKS.filter(({ from }) => step >= from).map((mark) => ({
    ...mark,
    at: center,
    angle: angles[mark.key],
  }));
  /** @type {(point: number[]) => number[]} */
  const through = (point) => inputs.weight.map((row) => dot(row, point));
  left.draw(rows, numbers, [...marks, { at: center, angle, look: "turned" }], step >= MEAN_FROM ? meanRow(rows) : null);
  if (step < OUTPUTS_FROM) return;
  const [x, y] = found.wc.map((row) => dot(row, a)),
    told = { at: [0, 0], angle: Math.atan2(y, x), look: "told" };
  right.draw(rows.map((row) => through(row.map((value, i) => value - center[i]))), numbers, [told], null);
}

/** @type {(curves: DragChart, state: State, found: Measured) => void} */
function drawCurves(curves, state, found) {
  const ends = Array.from({ length: 91 }, (_, i) => 2 * i);
  const lines = MEASURES.flatMap(({ key, name, from }, color) => {
    const points = ends.map((end) => [end, sharesAt(found, (Math.PI * end) / 180)[key]]);
    return state.step >= from ? [{ label: name, points, color }] : [];
  });
  curves.draw({
    title: "What a direction catches, by its angle",
    lines,
    x: { label: "angle of a, degrees", min: 0, max: 180 },
    y: { label: "share caught", percent: true, min: 0, max: 1 },
    cursor: degrees(state.angle),
    legend: lines.length > 1,
    height: 170,
  });
}

/**
 * What random directions catch by dimension; returns what draws it again.
 *
 * @type {(root: Element, state: State) => () => void}
 */
function drawDimensions(root, state) {
  const finding = make("p", { class: "finding", role: "status" }, root);
  const bar = make("div", { class: "bar" }, root);
  /** @type {(value: number) => number} */
  const nearest = (value) =>
    DIMENSIONS.reduce((a, b) => (Math.abs(Math.log(b / value)) < Math.abs(Math.log(a / value)) ? b : a));
  /** @type {Range} */
  const range = { min: 0, max: DIMENSIONS.length - 1, step: 1, text: (i) => String(DIMENSIONS[i]) };
  const dimension = slider(bar, "Dimension", range, (i) => move(DIMENSIONS[i]));
  const picture = dragChart(root, (value) => move(nearest(value)));
  make("p", { class: "formula" }, root, "share of a random a = cos² of its angle to the direction; mean 1 / d");
  /** @type {number[][] | null} */
  let caught = null;
  /** @type {(value: number) => void} */
  function move(value) {
    state.dimension = value;
    draw();
  }
  function draw() {
    caught ??= DIMENSIONS.map((d) => randomShares(state.seed, d)); // once, when it is first shown
    const means = caught.map((shares) => shares.reduce((sum, share) => sum + share, 0) / shares.length);
    const i = DIMENSIONS.indexOf(state.dimension), most = caught.map((shares) => Math.max(...shares));
    dimension.set(i);
    const words = `In ${state.dimension} dimensions a random direction catches ${percent(means[i])} on average, ` +
      `and the best of 200 catches ${percent(most[i])}.`;
    write(finding, words);
    picture.draw(dimensionChart(means, most, state.dimension));
  }
  return draw;
}

/** @type {(means: number[], most: number[], cursor: number) => Contents & {x: BoundedAxis}} */
function dimensionChart(means, most, cursor) {
  /** @type {(label: string, values: number[], color: number) => Line} */
  const line = (label, values, color) => ({
    label,
    color,
    points: DIMENSIONS.map((d, i) => [d, values[i]]),
    dots: true,
  });
  return {
    title: "What random directions catch, by the number of dimensions",
    lines: [
      line("best of 200", most, 1),
      line("mean of 200", means, 0),
      { label: "1 / d", color: 5, dash: true, points: DIMENSIONS.map((d) => [d, 1 / d]) },
    ],
    x: { label: "dimension d", log: true, min: 2, max: 576 },
    y: { label: "share caught", log: true, percent: true, min: 0.001, max: 1 },
    cursor,
    height: 260,
  };
}
