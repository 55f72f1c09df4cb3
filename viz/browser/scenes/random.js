// Random numbers from a seed: the same on every machine, so that a class sees one picture.

/** @import { Matrix } from "./matrix.js" */
/** @typedef {(rows: number, columns: number) => Matrix} Normals */

/**
 * Uniform numbers from 0 to 1 by mulberry32, and standard normal ones by Box and Muller.
 *
 * @param {number} seed A whole number from 0 on.
 */
export function generator(seed) {
  let state = seed >>> 0;
  function uniform() {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  }
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  /**
   * A matrix of normal numbers, row by row.
   *
   * @type {Normals}
   */
  const normals = (rows, columns) => Array.from({ length: rows }, () => Array.from({ length: columns }, normal));
  return { uniform, normal, normals };
}
