import assert from "node:assert/strict";
import { modelOf, place, send } from "./dom.js";
import { attributionPart } from "../panels/attribution/attribution.js";

// Two modules and two tokens: q gives 3 nats to the first token, v 1 to each.
const SAMPLE = {
  prompt: "p",
  tokens: ["p", "x", "y"],
  positions: [1, 2],
  base: [[-4, -2], [-4, -2]],
  adapter: [[0, -1], [0, -1]],
  modules: [[[3, 1], [0, 1]], [[3, 1], [0, 1]]],
  switched: { "0:0": { values: [[-3, -1], [-3, -1]], unchanged: [false, true] } },
  choices: [["a", "b"], ["x", "y"]],
  generated: ["ab", "xy"],
};

/** @param {boolean} live Whether there is a kernel. */
function panel(live) {
  const part = { names: ["m.q", "m.v"], rows: ["q", "v"], columns: [0], row: [0, 1], column: [0, 0], ranks: [4, 2] };
  const root = place(), model = live ? modelOf({}) : null;
  /** @type {object[]} */
  const asked = [];
  /** @type {(call: string, args?: object) => void} */
  const ask = (call, args) => void asked.push({ call, ...args });
  attributionPart(root, { ...part, samples: [structuredClone(SAMPLE)], live }, { model, ask });
  /** @type {(k: number) => any} */
  const cell = (k) => root.querySelector(`.cell[data-k='${k}']`);
  const finding = () => root.querySelector(".finding").textContent ?? "";
  return { root, model, asked, cell, finding };
}

Deno.test("contributions add up to what the answer gained, and tokens show theirs", () => {
  const { root, cell, finding } = panel(false);
  assert.match(cell(0).getAttribute("aria-label") ?? "", /contributed \+3\.00 nats; rank 4 of 4/);
  assert.match(cell(1).getAttribute("aria-label") ?? "", /contributed \+2\.00 nats/);
  assert.match(
    finding(),
    /^Layer 0 q contributed 3\.00 of the 5\.00 nats; leaving it out alone costs 3\.00\. In log-odds/,
  );
  assert.deepEqual([...root.querySelectorAll(".gained")].map((span) => span.textContent), ["gained", "+4.00", "+1.00"]);
});

Deno.test("without a kernel: a module that was measured is switched off, another is refused in words", () => {
  const { root, cell, finding } = panel(false), keys = root.querySelector("svg.chart");
  send(cell(0), "keydown", { key: "Enter" });
  assert.equal(cell(0).getAttribute("aria-selected"), "true");
  assert.match(finding(), /The first choice changes at 1 of 2 tokens/);
  send(keys, "keydown", { key: "Escape" });
  assert.equal(cell(0).getAttribute("aria-selected"), "false");
  cell(1).focus = () => {};
  send(keys, "keydown", { key: "ArrowDown" });
  send(keys, "keydown", { key: "Enter" });
  assert.equal(cell(1).getAttribute("aria-selected"), "false");
  assert.match(finding(), /layer 0 v costs was not measured: tlora\.attribute/);
});

Deno.test("with a kernel: it is asked, and its answer is shown", () => {
  const { root, model, asked, cell, finding } = panel(true), keys = root.querySelector("svg.chart");
  cell(1).focus = () => {};
  send(keys, "keydown", { key: "ArrowDown" });
  send(keys, "keydown", { key: "-" });
  assert.deepEqual(asked, [{ call: "switch", sample: 0, ranks: [[1, 1]] }]);
  assert.match(finding(), /^Leaving out layer 0 v/);
  const answer = { values: [[0, -1.5], [0, -1.5]], unchanged: [true, true], answer: "x" };
  model?.set("switched", { sample: 0, key: "1:1", ...answer });
  assert.match(finding(), /cutting it to rank 1 costs 0\.50\. In log-odds/);
  assert.match(root.querySelector(".written").textContent ?? "", /now answers: x$/);
});

Deno.test("while the answer is written again there is a bar, and it is not asked for twice", () => {
  const { root, model, cell } = panel(true), written = () => root.querySelector(".written");
  const { setTimeout } = globalThis, waits = [];
  globalThis.setTimeout = /** @type {any} */ ((/** @type {() => void} */ action) => waits.push(action));
  send(cell(0), "keydown", { key: "Enter" });
  const part = { sample: 0, key: "0:0" }, bar = { words: "answers, token 2 of at most 9", done: 0, total: 1 };
  model?.set("switched", { ...part, bar });
  globalThis.setTimeout = setTimeout;
  assert.equal(waits.length, 1); // after the key
  assert.match(written().textContent, /now answers: answers, token 2 of at most 9$/);
  assert.ok(written().querySelector("progress"));
  model?.set("switched", { ...part, answer: "x" });
  assert.match(written().textContent, /now answers: x$/);
  assert.equal(written().querySelector("progress"), null);
});

Deno.test("the reader's own request is sent, and its answer is shown when it comes", () => {
  const { root, model, asked } = panel(true), [request] = root.querySelectorAll("form input");
  request.value = "own";
  send(root.querySelector("form"), "submit");
  assert.deepEqual(asked, [{ call: "explain", prompt: "own", answer: null }]);
  model?.set("explaining", {
    row: null,
    running: true,
    said: "Taking it apart",
    bar: { words: "x", done: 0, total: 2 },
  });
  assert.match(root.querySelector("form").textContent, /Taking it apart.*x: 0 of 2$/);
  model?.set("explained", { samples: [{ ...SAMPLE, prompt: "own" }] });
  assert.equal(root.querySelector("select.sample").children.length, 2);
});
