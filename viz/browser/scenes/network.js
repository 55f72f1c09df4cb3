// Scene 3 in numbers: a network of four layers, a budget of ranks to share, and the loss after training with them.

import { apportion, apportionByGain } from "../allocate.js";
import { plus, product, productTransposed, rightSingular, squaredNorm, times, transpose, zeros } from "./matrix.js";
import { generator } from "./random.js";

/** @import { Matrix } from "./matrix.js" */
/** @import { Normals } from "./random.js" */

export const WIDTH = 8, LAYERS = 4, BUDGET = 8, SAMPLES = 64, STEPS = 120, RATE = 0.1;

/** @typedef {"uniform" | "sensitivity" | "captured"} Rule What ranks are shared by. */

/**
 * What a task changes in each layer: a matrix of what rank and norm. `gains` are the sizes of the layer's own weights:
 * `large` changes layers whose weights are large, `small` mostly one whose weights are small.
 *
 * @typedef {{ranks: number[], sizes: number[], gains: number[]}} Task
 */

/** @type {Record<string, Task>} */
export const TASKS = {
  large: { ranks: [0, 2, 5, 0], sizes: [0, 0.6, 1.2, 0], gains: [0.2, 0.6, 1.2, 0.2] },
  small: { ranks: [0, 1, 0, 6], sizes: [0, 0.5, 0, 1.2], gains: [0.3, 1.2, 0.5, 0.2] },
};

/**
 * A network: its frozen weights, inputs and targets; its scores by sensitivity, and the squared gradient that each
 * direction captures, by layer.
 *
 * @typedef {{weights: Matrix[], inputs: Matrix, targets: Matrix, start: number, directions: Matrix[],
 *   captured: number[][], scores: number[]}} Network
 */

/**
 * A network and a task for it; losses are shares of the loss before training.
 *
 * @param {number} seed
 * @param {Task} task
 * @returns {Network}
 */
export function makeNetwork(seed, task) {
  const { normals } = generator(seed);
  const weights = task.gains.map((gain) => times(normals(WIDTH, WIDTH), gain / Math.sqrt(WIDTH)));
  const inputs = normals(SAMPLES, WIDTH);
  const changed = weights.map((weight, l) => plus(weight, changeOf(normals, task.ranks[l]), task.sizes[l]));
  const targets = run(changed, inputs)[LAYERS];
  const { loss: start, gradients } = gradientsOf(weights, inputs, targets);
  const scores = sensitivities(weights, inputs, targets);
  const singular = gradients.map((gradient) => rightSingular(gradient));
  const captured = singular.map(({ values }) => values.map((value) => Math.max(0, value)));
  const directions = singular.map(({ vectors }) => vectors);
  return { weights, inputs, targets, start, directions, captured, scores };
}

/**
 * A random matrix of some rank, of norm 1.
 *
 * @type {(normals: Normals, rank: number) => Matrix}
 */
function changeOf(normals, rank) {
  if (!rank) return zeros(WIDTH, WIDTH);
  const raw = product(normals(WIDTH, rank), normals(rank, WIDTH));
  return times(raw, 1 / Math.sqrt(squaredNorm(raw)));
}

/**
 * The inputs of every layer, and the outputs of the last: each adds tanh(W h) to what it reads, h.
 *
 * @type {(weights: Matrix[], inputs: Matrix) => Matrix[]}
 */
function run(weights, inputs) {
  const values = [inputs];
  weights.forEach((weight, l) => {
    const sums = productTransposed(values[l], weight);
    values.push(plus(values[l], sums.map((row) => row.map(Math.tanh))));
  });
  return values;
}

/**
 * Half the squared error, a mean over samples, and its gradients in the weights.
 *
 * @type {(weights: Matrix[], inputs: Matrix, targets: Matrix) => {loss: number, gradients: Matrix[]}}
 */
function gradientsOf(weights, inputs, targets) {
  const values = run(weights, inputs), count = inputs.length;
  let errors = plus(values[weights.length], targets, -1);
  const loss = squaredNorm(errors) / (2 * count);
  /** @type {Matrix[]} */
  const gradients = [];
  for (let l = weights.length - 1; l >= 0; l--) {
    const added = plus(values[l + 1], values[l], -1); // tanh(W h)
    const inner = errors.map((row, n) => row.map((error, i) => error * (1 - added[n][i] ** 2)));
    gradients[l] = times(product(transpose(inner), values[l]), 1 / count);
    errors = plus(errors, product(inner, weights[l]));
  }
  return { loss, gradients };
}

/**
 * The sensitivity of each layer: the mean of |weight × gradient| over its entries and the samples.
 *
 * @type {(weights: Matrix[], inputs: Matrix, targets: Matrix) => number[]}
 */
function sensitivities(weights, inputs, targets) {
  const scores = weights.map(() => 0);
  inputs.forEach((row, n) => {
    const { gradients } = gradientsOf(weights, [row], [targets[n]]);
    gradients.forEach((gradient, l) => {
      const sizes = gradient.map((line, i) =>
        line.reduce((sum, value, j) => sum + Math.abs(value * weights[l][i][j]), 0)
      );
      scores[l] += sizes.reduce((sum, size) => sum + size, 0) / (WIDTH * WIDTH * inputs.length);
    });
  });
  return scores;
}

/** @type {(value: number) => number[]} */
const each = (value) => Array(LAYERS).fill(value);

/**
 * Ranks by a rule, at most the width each; all spend the budget.
 *
 * @type {(rule: Rule, network: Network) => number[]}
 */
export function ranksBy(rule, { scores, captured }) {
  if (rule === "captured") return apportionByGain(captured, BUDGET, each(0), each(WIDTH), each(1));
  return apportion(rule === "uniform" ? each(1) : scores, BUDGET, each(0), each(WIDTH), each(1));
}

/**
 * A training: A and the columns of B by layer, the gradients of the adapted weights, and the losses so far.
 *
 * @typedef {{a: Matrix[], b: Matrix[], gradients: Matrix[], losses: number[]}} Training
 */

/**
 * A training that has not begun: A of each layer are its leading directions of the gradient, B is zero.
 *
 * @type {(network: Network, ranks: number[]) => Training}
 */
export function begin(network, ranks) {
  const a = network.directions.map((rows, l) => rows.slice(0, ranks[l]));
  return evaluated(network, a, a.map((rows) => zeros(rows.length, WIDTH)), []);
}

/**
 * The training one step of gradient descent later.
 *
 * @type {(network: Network, training: Training) => Training}
 */
export function step(network, { a, b, gradients, losses }) {
  const next = b.map((columns, l) => plus(columns, productTransposed(a[l], gradients[l]), -RATE));
  return evaluated(network, a, next, losses);
}

/** @type {(network: Network, a: Matrix[], b: Matrix[], losses: number[]) => Training} */
function evaluated({ weights, inputs, targets, start }, a, b, losses) {
  const adapted = weights.map((weight, l) => (a[l].length ? plus(weight, product(transpose(b[l]), a[l])) : weight));
  const { loss, gradients } = gradientsOf(adapted, inputs, targets);
  return { a, b, gradients, losses: [...losses, loss / start] };
}
