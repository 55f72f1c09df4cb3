// Scene 1 in numbers: a cloud of inputs, a weight, a task, and what one direction catches of them.

import {
  covariance,
  dot,
  plus,
  product,
  productTransposed,
  rightSingular,
  squaredNorm,
  times,
  transpose,
} from "./matrix.js";
import { generator } from "./random.js";

/** @import { Matrix } from "./matrix.js" */

const SAMPLES = 160;
const NOISE = 0.1; // of the targets

/**
 * Inputs around their mean, the weight, and the change of the weight that the task asks for.
 *
 * @typedef {{cloud: Matrix, mean: number[], weight: Matrix, change: Matrix, noise: Matrix, random: number,
 *   stretched: number}} Inputs
 */

/**
 * The covariance `c` of inputs, the weight times it, the gradient in the weight, and the variance of the outputs.
 *
 * @typedef {{c: Matrix, wc: Matrix, gradient: Matrix, outputs: number}} Measured
 */

/** @typedef {{input: number, output: number, gradient: number}} Shares What a direction catches of each. */
/** @typedef {{principal: number, wc: number, gradient: number}} Angles Leading directions, from 0 to π. */

/** @type {(angle: number) => number[]} */
export const unit = (angle) => [Math.cos(angle), Math.sin(angle)];

/**
 * Inputs longer one way than the other, around a mean across it; a weight that stretches another direction.
 *
 * @param {number} seed
 * @returns {Inputs}
 */
export function makeInputs(seed) {
  const { uniform, normals } = generator(seed), along = Math.PI * uniform(), stretched = along + 0.9;
  const [long, wide] = [unit(along), unit(along + Math.PI / 2)];
  const cloud = product(normals(SAMPLES, 2), [long.map((v) => 1.3 * v), wide.map((v) => 0.75 * v)]);
  const mean = wide.map((v) => 1.9 * v);
  const [left, across] = [Math.PI * uniform(), stretched + Math.PI / 2];
  const weight = plus(
    outer(unit(left), unit(stretched).map((v) => 2 * v)),
    outer(unit(left + Math.PI / 2), unit(across).map((v) => v / 2)),
  );
  const change = outer(unit(Math.PI * uniform()), unit(along - 0.25));
  const noise = times(normals(SAMPLES, 2), NOISE);
  return { cloud, mean, weight, change, noise, random: Math.PI * uniform(), stretched };
}

/** @type {(left: number[], right: number[]) => Matrix} */
const outer = (left, right) => left.map((value) => right.map((other) => value * other));

/**
 * The inputs: the cloud at its mean.
 *
 * @type {(inputs: Inputs) => Matrix}
 */
export const inputRows = ({ cloud, mean }) => cloud.map((row) => row.map((value, i) => value + mean[i]));

/**
 * What measures need: the covariance of the inputs, the weight times it, and the gradient of the loss in the weight.
 *
 * The loss is half the squared error, a mean over samples; the targets are those of the changed weight, with noise.
 *
 * @param {Inputs} inputs
 * @param {boolean} centered Whether the mean of the inputs is subtracted.
 * @returns {Measured}
 */
export function measure(inputs, centered = true) {
  const rows = inputRows(inputs), c = covariance(rows, centered), wc = product(inputs.weight, c);
  const errors = plus(times(productTransposed(rows, inputs.change), -1), inputs.noise, -1);
  const gradient = times(product(transpose(errors), rows), 1 / rows.length);
  return { c, wc, gradient, outputs: trace(productTransposed(wc, inputs.weight)) };
}

/** @type {(a: Matrix) => number} */
const trace = (a) => a.reduce((sum, row, i) => sum + row[i], 0);

/**
 * What a direction catches: of the inputs' variance, of the outputs' variance and of the squared gradient.
 *
 * @type {(measured: Measured, angle: number) => Shares}
 */
export function sharesAt({ c, wc, gradient, outputs }, angle) {
  const a = unit(angle), through = wc.map((row) => dot(row, a)), along = dot(a, c.map((row) => dot(row, a)));
  const followed = gradient.map((row) => dot(row, a));
  return {
    input: along / trace(c),
    output: dot(through, through) / (along * outputs),
    gradient: dot(followed, followed) / squaredNorm(gradient),
  };
}

/**
 * The angles of the leading directions, from 0 to π.
 *
 * @type {(measured: Measured) => Angles}
 */
export function leadingAngles({ c, wc, gradient }) {
  return { principal: angleOf(c), wc: angleOf(wc), gradient: angleOf(gradient) };
}

/** @type {(matrix: Matrix) => number} */
function angleOf(matrix) {
  const [x, y] = rightSingular(matrix).vectors[0];
  return (Math.atan2(y, x) + Math.PI) % Math.PI;
}

/**
 * The angle between two lines in radians, at most π/2.
 *
 * @type {(one: number, other: number) => number}
 */
export function between(one, other) {
  const turn = Math.abs(one - other) % Math.PI;
  return Math.min(turn, Math.PI - turn);
}

/**
 * What each of some random directions in many dimensions catches of one that is fixed: its squared cosine.
 *
 * @type {(seed: number, dimension: number, count?: number) => number[]}
 */
export function randomShares(seed, dimension, count = 200) {
  const { normals } = generator(seed);
  return normals(count, dimension).map((row) => row[0] ** 2 / dot(row, row));
}
