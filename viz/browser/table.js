// Tables: the first cell of a row is its header.

import { make } from "./elements.js";
import { explained } from "./explain.js";

/**
 * What a table holds: `look` gives the attributes of a column's cells, `term` the words by which a header is explained.
 *
 * @typedef {object} Contents
 * @property {string[]} head
 * @property {(string | number)[][]} rows
 * @property {(i: number) => Record<string, string>} [look]
 * @property {(name: string) => string} [term]
 */

/**
 * Fills a table.
 *
 * @param {Element} table
 * @param {Contents} contents
 */
export function fillTable(table, { head, rows, look = () => ({}), term = (name) => name }) {
  if (head.length) {
    const tr = make("tr", {}, make("thead", {}, table));
    head.forEach((name, i) => {
      const cell = name ? make("th", { scope: "col", ...look(i) }, tr, name) : make("td", {}, tr, name);
      explained(cell, term(name));
    });
  }
  const body = make("tbody", {}, table);
  for (const row of rows) {
    const tr = make("tr", {}, body);
    row.forEach((text, i) => {
      if (i) make("td", look(i), tr, text);
      else explained(make("th", { scope: "row", ...look(i) }, tr, text));
    });
  }
}

/**
 * A table with a caption: the columns in `text` hold words, the others numbers; the reader opens a folded one.
 *
 * @param {Element} parent
 * @param {{caption: string, head: string[], rows: (string | number)[][], text?: number[], folded?: boolean}} part
 */
export function drawTable(parent, { caption, head, rows, text = [0], folded = false }) {
  const details = folded ? make("details", {}, parent) : null;
  if (details) make("summary", {}, details, caption);
  const scroll = { class: "scroll", role: "region", tabindex: 0, "aria-label": caption };
  const table = make("table", {}, make("div", scroll, details ?? parent));
  if (!folded) make("caption", {}, table, caption);
  fillTable(table, { head, rows, look: (i) => ({ class: text.includes(i) ? "words" : "count" }) });
}
