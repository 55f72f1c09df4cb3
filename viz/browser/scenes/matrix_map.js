// A matrix as a map of its entries: red above zero, blue below.

import { isDark, tint } from "../colors.js";
import { make, put, write } from "../elements.js";

/** @import { Matrix } from "./matrix.js" */

const CELL = 11; // pixels

/**
 * A map while it is drawn: an entry of size `most` has full color.
 *
 * @typedef {{root: HTMLElement, draw: (matrix: Matrix, most: number, text: string) => void}} MatrixMap
 */

/**
 * A map with a caption that both can change.
 *
 * @param {Element} parent
 * @param {string} name
 * @param {number} rows
 * @param {number} columns
 * @returns {MatrixMap}
 */
export function matrixMap(parent, name, rows, columns) {
  const root = make("figure", { class: "matrix" }, parent), size = { width: CELL * columns, height: CELL * rows };
  const svg = make("svg", { role: "img", "aria-label": name, ...size }, root);
  /** @type {SVGRectElement[]} */
  const cells = [];
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = { x: CELL * j, y: CELL * i, width: CELL - 1, height: CELL - 1 };
      cells.push(make("rect", at, svg));
    }
  }
  const caption = make("figcaption", {}, root);
  make("b", {}, caption, name);
  const words = make("span", {}, caption);
  /** @type {MatrixMap["draw"]} */
  function draw(matrix, most, text) {
    const dark = isDark(root);
    matrix.flat().forEach((value, k) => {
      const fill = Number.isFinite(value) ? tint(value / most, dark).fill : "gray"; // of a training that diverged
      put(cells[k], "fill", fill);
    });
    write(words, text);
  }
  return { root, draw };
}
