// Names of modules and means over them.

/** @import { Modules } from "./grid.js" */

/**
 * Where a module of a grid is, such as "layer 3 q_proj".
 *
 * @type {(modules: Modules, k: number) => string}
 */
export const placeOf = ({ rows, columns, row, column }, k) => `layer ${columns[column[k]]} ${rows[row[k]]}`;

/** @type {(values: number[]) => number} */
export const sum = (values) => values.reduce((all, value) => all + value, 0);

/**
 * The mean, or 0 of nothing.
 *
 * @type {(values: number[]) => number}
 */
export const mean = (values) => sum(values) / (values.length || 1);
