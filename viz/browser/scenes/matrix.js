// Small dense matrices: an array of rows.

/** @typedef {number[][]} Matrix */
/** @typedef {{values: number[], vectors: Matrix}} Eigen A vector per row. */

/**
 * The inner product of two vectors.
 *
 * @type {(a: number[], b: number[]) => number}
 */
export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** @type {(a: Matrix) => Matrix} */
export const transpose = (a) => a[0].map((_, j) => a.map((row) => row[j]));
/** @type {(a: Matrix, factor: number) => Matrix} */
export const times = (a, factor) => a.map((row) => row.map((value) => value * factor));
/** @type {(a: Matrix, b: Matrix, factor?: number) => Matrix} */
export const plus = (a, b, factor = 1) => a.map((row, i) => row.map((value, j) => value + factor * b[i][j]));
/** @type {(a: Matrix) => number} */
export const squaredNorm = (a) => a.reduce((sum, row) => sum + dot(row, row), 0);
/** @type {(rows: number, columns: number) => Matrix} */
export const zeros = (rows, columns) => Array.from({ length: rows }, () => Array(columns).fill(0));

/**
 * The product a b.
 *
 * @type {(a: Matrix, b: Matrix) => Matrix}
 */
export function product(a, b) {
  const columns = b[0].length;
  return a.map((row) => {
    /** @type {number[]} */
    const sums = Array(columns).fill(0);
    for (let k = 0; k < row.length; k++) {
      for (let j = 0; j < columns; j++) sums[j] += row[k] * b[k][j];
    }
    return sums;
  });
}

/**
 * The product of a and the transpose of b: the rows of both have one length.
 *
 * @type {(a: Matrix, b: Matrix) => Matrix}
 */
export const productTransposed = (a, b) => a.map((row) => b.map((other) => dot(row, other)));

/**
 * The mean of the rows.
 *
 * @type {(a: Matrix) => number[]}
 */
export const meanRow = (a) => transpose(a).map((column) => column.reduce((sum, value) => sum + value, 0) / a.length);

/**
 * The covariance of the rows, divided by their number; without centering their second moment.
 *
 * @type {(rows: Matrix, centered?: boolean) => Matrix}
 */
export function covariance(rows, centered = true) {
  const mean = centered ? meanRow(rows) : rows[0].map(() => 0);
  const columns = transpose(rows.map((row) => row.map((value, i) => value - mean[i])));
  return times(productTransposed(columns, columns), 1 / rows.length);
}

/**
 * Eigenvalues and unit eigenvectors of a symmetric matrix, the largest first, by Jacobi's rotations. In each vector the
 * entry of largest absolute value is positive.
 *
 * @type {(symmetric: Matrix) => Eigen}
 */
export function eigen(symmetric) {
  const a = symmetric.map((row) => [...row]), n = a.length;
  const vectors = a.map((_, i) => a.map((_, j) => Number(i === j)));
  const tiny = 1e-28 * squaredNorm(a);
  const rest = () => squaredNorm(a.map((row, i) => row.filter((_, j) => j > i)));
  for (let sweep = 0; sweep < 60 && rest() > tiny; sweep++) {
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(a, vectors, p, q);
  }
  const order = a.map((_, i) => i).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => withSign(vectors[i])) };
}

/**
 * Rotates rows and columns p and q so that their common entry becomes zero.
 *
 * @type {(a: Matrix, vectors: Matrix, p: number, q: number) => void}
 */
function rotate(a, vectors, p, q) {
  if (a[p][q] === 0) return;
  const ratio = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1));
  const cosine = 1 / Math.hypot(tangent, 1), sine = tangent * cosine;
  /** @type {(left: number, right: number) => number[]} */
  const mix = (left, right) => [cosine * left - sine * right, sine * left + cosine * right];
  for (const row of a) [row[p], row[q]] = mix(row[p], row[q]);
  for (const rows of [a, vectors]) {
    const pairs = rows[p].map((value, j) => mix(value, rows[q][j]));
    rows[p] = pairs.map(([first]) => first);
    rows[q] = pairs.map(([, second]) => second);
  }
}

/** @type {(vector: number[]) => number[]} */
function withSign(vector) {
  const peak = vector.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
  return peak < 0 ? vector.map((value) => -value) : vector;
}

/**
 * The right singular vectors of a matrix, one per row, and the squares of its singular values.
 *
 * @type {(a: Matrix) => Eigen}
 */
export const rightSingular = (a) => eigen(productTransposed(transpose(a), transpose(a)));

/**
 * The solution x of a x = b for a symmetric positive definite a.
 *
 * @type {(a: Matrix, b: Matrix) => Matrix}
 */
export function solve(a, b) {
  const { values, vectors } = eigen(a), parts = product(vectors, b);
  return product(transpose(vectors), parts.map((row, i) => row.map((value) => value / values[i])));
}
