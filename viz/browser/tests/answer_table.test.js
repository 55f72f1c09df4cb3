import assert from "node:assert/strict";
import { modelOf, place, send } from "./dom.js";
import { answerTablePart } from "../panels/answer_table/answer_table.js";
import { chosenRows, filterCounts } from "../panels/answer_table/rows.js";

/** @import { Row } from "../panels/answer_table/rows.js" */

/** @type {(row: number, base_right: boolean | null, adapter_right: boolean | null, more?: object) => Row} */
const rowOf = (row, base_right, adapter_right, more = {}) => ({
  ...{ row, request: `request ${row}`, base: `b${row}`, adapter: `a${row}`, reference: `r${row}` },
  ...{ base_right, adapter_right, changed: true, gain: row, apart: null, ...more },
});
const ROWS = [
  rowOf(2, true, false, { gain: -1.5, apart: { tokens: [["r", -2], ["2", 0.5]], modules: [["layer 3 q", -1.25]] } }),
  rowOf(10, false, true, { base: "x\ny" }),
  rowOf(0, true, true, { changed: false }),
  rowOf(1, null, null, { reference: null, gain: 0.25 }),
];

/** @type {(filter: string, column?: string | null, descending?: boolean) => number[]} */
const chosen = (filter, column = null, descending = false) =>
  chosenRows(ROWS, { filter, column, descending }).map(({ row }) => row);

Deno.test("a filter keeps the rows that it names, in their order", () => {
  assert.deepEqual(chosen("all"), [2, 10, 0, 1]);
  assert.deepEqual(chosen("newly right"), [10]);
  assert.deepEqual(chosen("newly wrong"), [2]);
  assert.deepEqual(chosen("changed"), [2, 10, 1]);
  assert.deepEqual(chosen("wrong"), [2]);
  assert.deepEqual(filterCounts(ROWS).map(([, count]) => count), [4, 1, 1, 3, 1]);
  assert.deepEqual(filterCounts(ROWS.slice(3)), [["all", 1], ["changed", 1]]);
});

Deno.test("columns sort by number, by text with its numbers, and by marks with the wrong answers first", () => {
  assert.deepEqual(chosen("all", "row"), [0, 1, 2, 10]);
  assert.deepEqual(chosen("all", "request", true), [10, 2, 1, 0]);
  assert.deepEqual(chosen("all", "gain, nats"), [2, 0, 1, 10]);
  assert.deepEqual(chosen("all", "adapter"), [2, 0, 10, 1]);
  assert.deepEqual(chosen("all", "reference"), [0, 2, 10, 1]);
  assert.deepEqual(chosen("changed", "base", true), [1, 2, 10]);
  assert.deepEqual(ROWS.map(({ row }) => row), [2, 10, 0, 1]); // which stay as they were
});

/** @type {any} */
const ALONE = { about: { panels: [] }, model: null, ask: null };

/**
 * @param {Row[]} rows
 * @param {any} context What is not that of a page on the panel alone.
 */
function drawn(rows = ROWS, context = {}) {
  const root = place(), part = { sentence: "1 of 3 right, 2 before.", rows, live: Boolean(context.model) };
  answerTablePart(root, part, { ...ALONE, ...context });
  /** @type {(words: string) => any} */
  const button = (words) => [...root.querySelectorAll("button")].find((each) => each.textContent === words);
  const numbers = () => [...root.querySelectorAll(".answers-row > .row")].map((cell) => Number(cell.textContent));
  return { root, part, button, numbers };
}

Deno.test("a click on a head sorts, another turns the order around, and the head says so", () => {
  const { root, button, numbers } = drawn(), sorts = () => root.querySelectorAll("[aria-sort]:not([aria-sort=none])");
  assert.equal(root.querySelector("p").textContent, "1 of 3 right, 2 before.");
  assert.equal(drawn(ROWS, { about: { panels: [], stages: [] } }).root.querySelector("p"), null); // the stage of the workbench says it
  assert.equal(sorts().length, 0);
  send(button("gain, nats"), "click");
  assert.deepEqual(numbers(), [2, 0, 1, 10]);
  assert.deepEqual([...sorts()].map((head) => head.getAttribute("aria-sort")), ["ascending"]);
  send(button("gain, nats"), "click");
  assert.deepEqual(numbers(), [10, 1, 0, 2]);
  assert.deepEqual([...sorts()].map((head) => head.getAttribute("aria-sort")), ["descending"]);
  send(button("changed 3"), "click");
  assert.deepEqual(numbers(), [10, 1, 2]);
  assert.equal(button("changed 3").getAttribute("aria-pressed"), "true");
});

Deno.test("a row opens as a conversation, which stays open in another order, and closes", () => {
  const { root, part, button } = drawn(), turns = () => [...root.querySelectorAll(".turn")];
  send(button("request 2"), "click");
  assert.equal(button("request 2").getAttribute("aria-expanded"), "true");
  assert.deepEqual(turns().map((turn) => turn.textContent), [
    "requestrequest 2",
    "base\u2713b2",
    "adapter\u2717a2",
    "referencer2",
  ]);
  assert.deepEqual([...root.querySelectorAll(".chip")].map((chip) => chip.textContent), ["r\u22122.00", "2+0.50"]);
  assert.equal(root.querySelector(".modules").textContent, "layer 3 q\u22121.25");
  assert.equal(root.querySelector(".modules .share").className, "share less");
  assert.match(root.querySelector(".gained p").textContent, /each token of the reference gained, \u22121\.50 nats/);
  send(button("row"), "click");
  assert.equal(turns().length, 4);
  const again = place();
  answerTablePart(again, part, ALONE); // as if another panel had been open
  assert.equal(again.querySelectorAll(".turn").length, 4);
  send(button("request 2"), "click");
  assert.equal(turns().length, 0);
});

Deno.test("without a reference there is no mark, and without tokens a line says how to get them", () => {
  const { root, button } = drawn();
  send(button("request 1"), "click");
  assert.equal(root.querySelector(".turn .mark"), null);
  assert.match(root.querySelector(".gained").textContent, /add --rows 1 to tlora explain --data, or explain=\[1\]/);
});

Deno.test("eight rows are shown, the others on demand", () => {
  const { button, numbers } = drawn(Array.from({ length: 11 }, (_, n) => rowOf(n, false, false)));
  assert.equal(numbers().length, 8);
  send(button("Show 3 more"), "click");
  assert.equal(numbers().length, 11);
  assert.equal(button("newly right 0").disabled, true);
});

Deno.test("with a kernel a row is taken apart in place, with a bar, and can be stopped", () => {
  const model = modelOf({}), /** @type {any[]} */ asked = [];
  const ask = (/** @type {string} */ call, /** @type {any} */ args) => void asked.push([call, args]);
  const { root, button } = drawn(ROWS, { model, ask }), gained = () => root.querySelector(".gained");
  send(button("request 10"), "click");
  assert.doesNotMatch(gained().textContent, /--rows/);
  send(gained().querySelector("button"), "click");
  assert.deepEqual(asked, [["explain_row", { row: 10 }]]);
  const bar = { words: "attribution, point 2 of 8", done: 0, total: 1 };
  model.set("explaining", { row: 10, running: true, said: "Taking row 10 apart, about 20 seconds", bar });
  assert.match(gained().textContent, /about 20 seconds.*point 2 of 8/);
  assert.ok(gained().querySelector("progress"));
  const [begin, stop] = gained().querySelectorAll("button");
  assert.deepEqual([begin.disabled, stop.hidden], [true, false]);
  assert.equal(root.querySelector("form button").disabled, true);
  assert.equal(root.querySelector("form progress"), null); // its bar is in the row
  send(stop, "click");
  assert.deepEqual(asked.at(-1), ["stop_explaining", undefined]);
  model.set("explaining", { row: 10, running: false, said: "Stopped." });
  assert.match(gained().textContent, /Stopped\.$/);
  assert.equal(begin.disabled, false);
  const apart = { tokens: [["r", 4], ["10", 6]], modules: [["layer 1 v", 7.5]] };
  model.set("explained", { rows: [{ ...ROWS[1], apart }] });
  assert.deepEqual([...root.querySelectorAll(".chip")].map((chip) => chip.textContent), ["r+4.00", "10+6.00"]);
  assert.equal(gained().querySelector("button"), null);
  assert.doesNotMatch(gained().textContent, /panel Attribution/); // which is not there
});

Deno.test("the reader's own request is asked in place, and stands open above the others", () => {
  const model = modelOf({}), /** @type {any[]} */ asked = [];
  const ask = (/** @type {string} */ call, /** @type {any} */ args) => void asked.push([call, args]);
  const { root, button, part } = drawn(ROWS, { model, ask }), [request] = root.querySelectorAll("form input");
  send(button("newly right 1"), "click");
  request.value = "mine";
  send(root.querySelector("form"), "submit");
  assert.deepEqual(asked, [["explain", { prompt: "mine", answer: null }]]);
  const own = {
    ...rowOf(-1, null, null),
    request: "mine",
    reference: null,
    apart: { tokens: [["a", 2]], modules: [] },
  };
  model.set("explained", { rows: [own] });
  const names = () => [...root.querySelectorAll(".answers-row > .row")].map((cell) => cell.textContent);
  assert.deepEqual(names(), ["own 1", "2", "10", "0", "1"]);
  assert.equal(button("all 5").getAttribute("aria-pressed"), "true");
  assert.deepEqual([...root.querySelectorAll(".turn")].map((turn) => turn.textContent), [
    "requestmine",
    "baseb-1",
    "adaptera-1",
  ]);
  const again = place(); // a page without the kernel shows it too
  answerTablePart(again, { ...part, live: false }, { ...ALONE, model });
  assert.equal(again.querySelector(".answers-row > .row").textContent, "own 1");
  assert.equal(again.querySelector("form"), null);
});
