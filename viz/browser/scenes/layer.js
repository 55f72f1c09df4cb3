// Scene 2 in numbers: a linear layer that needs a change of rank 2, trained by gradient descent in four ways.

import {
  covariance,
  dot,
  plus,
  product,
  productTransposed,
  rightSingular,
  solve,
  times,
  transpose,
  zeros,
} from "./matrix.js";
import { generator } from "./random.js";

/** @import { Matrix } from "./matrix.js" */

export const INPUTS = 12, OUTPUTS = 8, RANK = 2, SAMPLES = 64;

/** @typedef {"random" | "gradient" | "lora" | "full"} Method */

/**
 * A layer: the second moment of its inputs, the change that it needs, and two matrices A.
 *
 * @typedef {{moment: Matrix, change: Matrix, random: Matrix, gradient: Matrix}} Layer
 */

/** @typedef {{method: Method, a: Matrix, b: Matrix, update: Matrix}} Training One that stands at some step. */

/**
 * A layer whose loss is 1 before training.
 *
 * @param {number} seed
 * @returns {Layer}
 */
export function makeLayer(seed) {
  const { uniform, normals } = generator(seed);
  const scales = Array.from({ length: INPUTS }, (_, i) => 1.5 * 3 ** (-i / (INPUTS - 1)));
  const rows = normals(SAMPLES, INPUTS).map((row) => row.map((value, i) => value * scales[i]));
  const moment = covariance(rows, false), raw = product(normals(OUTPUTS, RANK), normals(RANK, INPUTS));
  const change = times(raw, 1 / Math.sqrt(lossOf(zeros(OUTPUTS, INPUTS), { moment, change: raw })));
  const bound = 1 / Math.sqrt(INPUTS); // of LoRA's own initialization
  const random = zeros(RANK, INPUTS).map((row) => row.map(() => bound * (2 * uniform() - 1)));
  const leading = rightSingular(product(change, moment)).vectors.slice(0, RANK);
  return { moment, change, random, gradient: leading.map((row) => likeRandom(row, moment)) };
}

/**
 * A row as long as gives it the second moment that the inputs have along a random row of LoRA, in the mean.
 *
 * @type {(row: number[], moment: Matrix) => number[]}
 */
function likeRandom(row, moment) {
  const mean = moment.reduce((sum, line, i) => sum + line[i], 0) / (3 * INPUTS);
  const factor = Math.sqrt(mean / dot(row, moment.map((line) => dot(line, row))));
  return row.map((value) => factor * value);
}

/**
 * Half the squared error of the outputs with an update, a mean over the inputs.
 *
 * @type {(update: Matrix, layer: Pick<Layer, "moment" | "change">) => number}
 */
export function lossOf(update, { moment, change }) {
  const rest = plus(update, change, -1);
  return product(rest, moment).reduce((sum, row, i) => sum + dot(row, rest[i]), 0) / 2;
}

/**
 * The lowest loss that any B reaches with a frozen A.
 *
 * @type {(a: Matrix, layer: Layer) => number}
 */
export function floorOf(a, layer) {
  const seen = product(a, layer.moment),
    b = transpose(solve(productTransposed(seen, a), productTransposed(seen, layer.change)));
  return lossOf(product(b, a), layer);
}

/**
 * A training that has not begun: B is zero.
 *
 * @type {(layer: Layer, method: Method) => Training}
 */
export function begin(layer, method) {
  const a = method === "gradient" ? layer.gradient : layer.random;
  return { method, a, b: zeros(OUTPUTS, RANK), update: zeros(OUTPUTS, INPUTS) };
}

/**
 * The training one step of gradient descent later.
 *
 * @type {(layer: Layer, training: Training, rate: number) => Training}
 */
export function step(layer, { method, a, b, update }, rate) {
  const gradient = product(plus(update, layer.change, -1), layer.moment);
  if (method === "full") return { method, a, b, update: plus(update, gradient, -rate) };
  const nextB = plus(b, productTransposed(gradient, a), -rate);
  const nextA = method === "lora" ? plus(a, product(transpose(b), gradient), -rate) : a;
  return { method, a: nextA, b: nextB, update: product(nextB, nextA) };
}

/**
 * The loss after some steps at each of some learning rates; a training that diverges has an infinite one.
 *
 * @type {(layer: Layer, method: Method, rates: number[], steps: number) => number[]}
 */
export function lossesByRate(layer, method, rates, steps) {
  return rates.map((rate) => {
    let training = begin(layer, method);
    for (let n = 0; n < steps; n++) training = step(layer, training, rate);
    const loss = lossOf(training.update, layer);
    return Number.isFinite(loss) ? loss : Infinity;
  });
}

/**
 * Numbers that a training step holds for one layer of some size: trained, of AdamW, and inputs by token.
 *
 * @param {Method} method
 * @param {number} inputs
 * @param {number} outputs
 * @param {number} rank
 */
export function storedNumbers(method, inputs, outputs, rank) {
  const frozen = { trained: rank * outputs, kept: rank };
  const lora = { trained: rank * (inputs + outputs), kept: inputs + rank };
  const full = { trained: inputs * outputs, kept: inputs };
  const { trained, kept } = { random: frozen, gradient: frozen, lora, full }[method];
  return { trained, states: 2 * trained, kept };
}
