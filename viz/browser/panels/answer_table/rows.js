// Which rows of the answers a filter keeps, and in which order a column puts them.

/**
 * An answer that was taken apart: its tokens with what each gained, and the modules that contributed most, in nats.
 *
 * @typedef {{tokens: [string, number][], modules: [string, number][]}} Apart
 */

/**
 * A request with both answers; `apart` is the reference, or without a reference the adapter's answer, if it was.
 *
 * @typedef {object} Row
 * @property {number} row
 * @property {string} request
 * @property {string} base
 * @property {string} adapter
 * @property {string | null} reference
 * @property {boolean | null} base_right
 * @property {boolean | null} adapter_right
 * @property {boolean} changed
 * @property {number} gain
 * @property {Apart | null} apart
 */

/**
 * The rows of a table with what a kernel has taken apart, and above them the reader's own requests, the latest first;
 * their numbers are negative.
 *
 * @type {(rows: Row[], known: Row[]) => Row[]}
 */
export function withKnown(rows, known) {
  const byRow = new Map(known.map((row) => [row.row, row]));
  const own = known.filter(({ row }) => row < 0).sort((a, b) => a.row - b.row);
  return [...own, ...rows.map((row) => byRow.get(row.row) ?? row)];
}

/** @type {(row: number) => string} */
export const rowName = (row) => (row < 0 ? `own ${-row}` : String(row));

/** @typedef {{sentence: string, keeps: (row: Row) => boolean}} Filter */

/** @type {Record<string, Filter>} */
export const FILTERS = {
  "all": { sentence: "All rows", keeps: () => true },
  "newly right": {
    sentence: "Right with the adapter, wrong before",
    keeps: (row) => row.adapter_right === true && row.base_right === false,
  },
  "newly wrong": {
    sentence: "Wrong with the adapter, right before",
    keeps: (row) => row.adapter_right === false && row.base_right === true,
  },
  "changed": { sentence: "The adapter's answer is not the base's", keeps: (row) => row.changed },
  "wrong": { sentence: "Wrong with the adapter", keeps: (row) => row.adapter_right === false },
};

/** @typedef {(string | number)[]} Key */

/** @type {(right: boolean | null) => number} */
const markKey = (right) => (right === null ? 2 : Number(right));

/**
 * What each column is sorted by: answers by their marks first, the wrong ones at the top.
 *
 * @type {Record<string, (row: Row) => Key>}
 */
export const COLUMNS = {
  "row": ({ row }) => [row],
  "request": ({ request }) => [request],
  "base": ({ base, base_right }) => [markKey(base_right), base],
  "adapter": ({ adapter, adapter_right }) => [markKey(adapter_right), adapter],
  "reference": ({ reference }) => [Number(reference === null), reference ?? ""],
  "changed": ({ changed }) => [Number(!changed)],
  "gain, nats": ({ gain }) => [gain],
};

/** @type {(a: Key, b: Key) => number} */
function compare(a, b) {
  for (const [i, left] of a.entries()) {
    const right = b[i];
    const order = typeof left === "number" ? left - Number(right) : left.localeCompare(String(right), "en", NUMERIC);
    if (order) return order;
  }
  return 0;
}
const NUMERIC = { numeric: true };

/**
 * The rows that a filter keeps, sorted by a column; equal ones, and all if there is no column, stay in their order.
 *
 * @type {(rows: Row[], choice: {filter: string, column: string | null, descending: boolean}) => Row[]}
 */
export function chosenRows(rows, { filter, column, descending }) {
  const kept = rows.filter(FILTERS[filter].keeps);
  if (column === null) return kept;
  const key = COLUMNS[column], sign = descending ? -1 : 1;
  return kept.sort((a, b) => sign * compare(key(a), key(b)));
}

/**
 * The filters that say something of these rows, with how many rows each keeps: without marks, none is right or wrong.
 *
 * @type {(rows: Row[]) => [string, number][]}
 */
export function filterCounts(rows) {
  const isMarked = rows.some(({ adapter_right }) => adapter_right !== null);
  const names = Object.keys(FILTERS).filter((name) => isMarked || name === "all" || name === "changed");
  return names.map((name) => [name, rows.filter(FILTERS[name].keeps).length]);
}
