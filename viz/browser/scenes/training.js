// Scene 2: what training does with what an adapter reads. One layer, trained in four ways in the page.

import { choose } from "../controls.js";
import { make, write } from "../elements.js";
import { drawTable } from "../table.js";
import { lossText, number, whole } from "../text.js";
import { dragChart } from "./drag_chart.js";
import * as layers from "./layer.js";
import { largest } from "../colors.js";
import { matrixMap } from "./matrix_map.js";
import { player } from "./player.js";
import { slider } from "./slider.js";
import { DEFAULT_RATE, METHODS, RATES, STEPS, trainingSteps } from "./training_steps.js";

/** @import { Option } from "../controls.js" */
/** @import { DragChart } from "./drag_chart.js" */
/** @import { Layer, Method, Training } from "./layer.js" */
/** @import { MatrixMap } from "./matrix_map.js" */
/** @import { Scene } from "./story.js" */

const RATE_FROM = 4, STORED_FROM = 5; // steps of the story
const DIVERGED = 1.5; // a loss above it is drawn no further

/** @typedef {{training: Training, loss: number}[]} Run A training at each of its steps. */
/** @typedef {{needed: MatrixMap, updates: MatrixMap[]}} Maps */

/**
 * What the scene shows: the step `at` which trainings are, that of the `story`, the `runs` at the rate as far as they
 * went, and the losses of each method by rate once they are `swept`.
 *
 * @typedef {{layer: Layer, rate: number, at: number, story: number, runs: Partial<Record<Method, Run>>,
 *   swept: number[][] | null}} State
 */

/**
 * The scene.
 *
 * @param {Element} parent Where its picture goes.
 * @param {number} seed
 * @returns {Scene}
 */
export function trainingScene(parent, seed) {
  const layer = layers.makeLayer(seed);
  /** @type {State} */
  const state = { layer, rate: DEFAULT_RATE, at: 0, story: 0, runs: {}, swept: null };
  const root = make("div", { class: "picture" }, parent);
  const bar = make("div", { class: "bar" }, root);
  const training = player(bar, { advance, restart: () => move(0) });
  const step = slider(bar, "Step", { min: 0, max: STEPS, step: 1 }, (value) => move(value));
  const rate = slider(
    bar,
    "Learning rate",
    { min: 0, max: RATES.length - 1, step: 1, text: (i) => number(RATES[i]) },
    (i) => setRate(RATES[i]),
  );
  const parts = { losses: dragChart(root, (value) => move(Math.round(value))), ...drawMaps(root) };
  const sweep = make("div", {}, root), sweepChart = dragChart(sweep, (value) => setRate(nearestRate(value)));
  const stored = drawStored(make("div", {}, root));
  /** @type {(at: number) => void} */
  function move(at) {
    training.stop();
    state.at = at;
    redraw();
  }
  /** @type {(count: number) => boolean} */
  function advance(count) {
    if (state.at === STEPS) state.at = 0; // again
    state.at = Math.min(STEPS, state.at + count);
    redraw();
    return state.at < STEPS;
  }
  /** @type {(value: number) => void} */
  function setRate(value) {
    if (value === state.rate) return;
    Object.assign(state, { rate: value, runs: {} });
    redraw();
  }
  function redraw() {
    step.set(state.at);
    rate.set(RATES.indexOf(state.rate));
    drawLosses(parts.losses, state);
    paintMaps(parts.maps, state);
    if (state.story === RATE_FROM) drawSweep(sweepChart, state);
  }
  /** @type {(story: number) => void} */
  function show(story) {
    training.stop();
    if (story >= RATE_FROM && story > state.story) state.at = STEPS;
    state.story = story;
    rate.box.hidden = story < RATE_FROM - 1;
    sweep.hidden = story !== RATE_FROM;
    stored.hidden = story < STORED_FROM;
    parts.root.hidden = story >= RATE_FROM;
    redraw();
  }
  return { steps: trainingSteps(layer), show, stop: training.stop };
}

/** @type {(value: number) => number} */
const nearestRate = (value) =>
  RATES.reduce((a, b) => (Math.abs(Math.log(b / value)) < Math.abs(Math.log(a / value)) ? b : a));
/** @type {(state: State) => typeof METHODS} */
const shownMethods = ({ story }) => METHODS.filter(({ from }) => story >= from);

/**
 * The training of a method up to the step that is shown; what has been trained before is kept.
 *
 * @type {(state: State, method: Method) => Run}
 */
function runOf(state, method) {
  const { layer, rate, runs, at } = state;
  const run = (runs[method] ??= [{ training: layers.begin(layer, method), loss: 1 }]);
  while (run.length <= at) {
    const training = layers.step(layer, run[run.length - 1].training, rate);
    run.push({ training, loss: layers.lossOf(training.update, layer) });
  }
  return run;
}

/** @type {(picture: DragChart, state: State) => void} */
function drawLosses(picture, state) {
  const lines = shownMethods(state).map(({ method, name }, color) => {
    const run = runOf(state, method).slice(0, state.at + 1), end = run.findIndex(({ loss }) => !(loss < DIVERGED));
    const points = run.slice(0, end < 0 ? undefined : end).map(({ loss }, n) => [n, loss]);
    const text = end < 0 ? `${name}: ${lossText(run[state.at].loss)}` : `${name}: diverged`;
    return { label: text, term: "", points, color };
  });
  const floors = shownMethods(state).flatMap(({ method }, color) => {
    if (method !== "random" && method !== "gradient") return [];
    const floor = layers.floorOf(state.layer[method], state.layer);
    return [{ points: [[0, floor], [STEPS, floor]], color, dash: true, thin: true }];
  });
  picture.draw({
    title: "Loss of each way to train, by step",
    lines: [...lines, ...floors],
    x: { label: "step", min: 0, max: STEPS },
    y: { label: "loss of the layer", min: 0, max: 1.2 },
    cursor: state.at,
  });
}

/**
 * A map of the change that the task needs, and one of the update by each method.
 *
 * @type {(parent: Element) => {root: HTMLElement, maps: Maps}}
 */
function drawMaps(parent) {
  const root = make("div", { class: "matrices" }, parent), [rows, columns] = [layers.OUTPUTS, layers.INPUTS];
  const needed = matrixMap(root, "Needed change", rows, columns);
  const updates = METHODS.map(({ name }) => matrixMap(root, name, rows, columns));
  return { root, maps: { needed, updates } };
}

/** @type {(maps: Maps, state: State) => void} */
function paintMaps({ needed, updates }, state) {
  const most = largest(state.layer.change.flat());
  needed.draw(state.layer.change, most, "rank 2");
  METHODS.forEach(({ method, from }, i) => {
    updates[i].root.hidden = state.story < from;
    if (state.story < from) return;
    const { training, loss } = runOf(state, method)[state.at];
    updates[i].draw(training.update, most, loss < DIVERGED ? `loss ${lossText(loss)}` : "diverged");
  });
}

/**
 * The loss after some steps at every learning rate; the line is the rate of the curves above.
 *
 * @type {(picture: DragChart, state: State) => void}
 */
function drawSweep(picture, state) {
  const swept = state.swept ??= METHODS.map(({ method }) => layers.lossesByRate(state.layer, method, RATES, STEPS));
  const lines = METHODS.map(({ name }, color) => {
    const points = RATES.map((rate, i) => [rate, swept[color][i]]).filter(([, loss]) => loss < DIVERGED);
    return { label: name, term: "", points, color, dots: true };
  });
  picture.draw({
    title: `Loss after ${STEPS} steps, by learning rate`,
    lines,
    x: { label: "learning rate of the descent", log: true, min: RATES[0], max: RATES[RATES.length - 1] },
    y: { label: `loss after ${STEPS} steps`, min: 0, max: 1.2 },
    cursor: state.rate,
    height: 190,
  });
}

/** @type {Record<string, [number, number]>} Inputs and outputs of layers to choose from. */
const SIZES = { this: [layers.INPUTS, layers.OUTPUTS], small: [576, 576], large: [4096, 4096] };
/** @type {Option[]} */
const SIZE_NAMES = [
  ["this", "this layer: 12 to 8"],
  ["small", "SmolLM2-135M: 576 to 576"],
  ["large", "LLaMA-2-7B: 4,096 to 4,096"],
];

/**
 * A table of the numbers that each method stores, for a layer and a rank to choose.
 *
 * @type {(root: HTMLElement) => HTMLElement}
 */
function drawStored(root) {
  const bar = make("div", { class: "bar" }, root),
    table = make("div", {}, root),
    state = { size: "this", rank: layers.RANK };
  choose(bar, "Layer", SIZE_NAMES, state.size, (size) => change({ size }));
  const rank = slider(bar, "Rank", { min: 1, max: 8, step: 1 }, (value) => change({ rank: value }));
  const words = make("p", { class: "formula" }, root);
  /** @type {(values: {size?: string, rank?: number}) => void} */
  function change(values) {
    Object.assign(state, values);
    const [inputs, outputs] = SIZES[state.size];
    rank.set(state.rank);
    table.replaceChildren();
    const rows = METHODS.map(({ method, name }) => {
      const { trained, states, kept } = layers.storedNumbers(method, inputs, outputs, state.rank);
      return [name, whole(trained), whole(states), whole(kept)];
    });
    const head = ["", "trained", "AdamW states", "kept for each token"];
    drawTable(table, { caption: "Numbers that a training step stores", head, rows });
    write(
      words,
      "A frozen: r·d_out trained, r kept for each token · LoRA: r·(d_in + d_out), d_in + r · full: d_in·d_out, d_in",
    );
  }
  change({});
  return root;
}
