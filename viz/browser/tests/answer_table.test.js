import assert from "node:assert/strict";
import { place, send } from "./dom.js";
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

/**
 * @param {Row[]} rows
 * @param {any} model That of the workbench, if it is there.
 */
function drawn(rows = ROWS, model = null) {
  const root = place(), part = { sentence: "1 of 3 right, 2 before.", rows };
  answerTablePart(root, part, { model });
  /** @type {(words: string) => any} */
  const button = (words) => [...root.querySelectorAll("button")].find((each) => each.textContent === words);
  const numbers = () => [...root.querySelectorAll(".answers-row > .row")].map((cell) => Number(cell.textContent));
  return { root, part, button, numbers };
}

Deno.test("a click on a head sorts, another turns the order around, and the head says so", () => {
  const { root, button, numbers } = drawn(), sorts = () => root.querySelectorAll("[aria-sort]:not([aria-sort=none])");
  assert.equal(root.querySelector("p").textContent, "1 of 3 right, 2 before.");
  assert.equal(drawn(ROWS, {}).root.querySelector("p"), null); // the stage of the workbench says it
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
  answerTablePart(again, part, { model: null }); // as if another panel had been open
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
