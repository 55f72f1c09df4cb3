import assert from "node:assert/strict";
import { place } from "./dom.js";
import { chart, lossCurves, spread, ticks, tickText } from "../chart.js";

/** @import { Losses } from "../traits.js" */

Deno.test("ticks are round, within the axis, and no more than asked for", () => {
  assert.deepEqual(ticks(0, 1, false, 4), [0, 0.5, 1]);
  assert.deepEqual(ticks(0, 40, false, 4), [0, 10, 20, 30, 40]);
  assert.deepEqual(ticks(1, 100, true, 7), [1, 2, 5, 10, 20, 50, 100]);
  assert.deepEqual(ticks(1, 10000, true, 5), [1, 10, 100, 1000, 10000]);
  for (const [low, high] of [[0.3, 0.7], [-5, 11], [1e-6, 3e-6], [0, 0]]) {
    for (const v of ticks(low, high, false, 4)) assert.ok(v >= low - 1e-9 && v <= high + 1e-9);
  }
});

Deno.test("small numbers are powers of ten on a logarithmic axis alone", () => {
  assert.equal(tickText({ label: "", log: true }, 1e-5), "10\u207b\u2075");
  assert.equal(tickText({ label: "", log: true }, 2e-5), "2\u00b710\u207b\u2075");
  assert.equal(tickText({ label: "" }, -0.5), "\u22120.5");
  assert.equal(tickText({ label: "", percent: true }, 0.25), "25\u00a0%");
});

Deno.test("points are where the axes say, and what is not finite is left out", () => {
  const parent = place();
  const points = [[0, 0], [1, NaN], [2, 1]], x = { label: "x", min: 0, max: 2 }, y = { label: "y" };
  chart(parent, { title: "t", lines: [{ label: "a", points }], x, y, width: 158, height: 138 });
  assert.equal(parent.querySelector("path.curve").getAttribute("d"), "M50.0 106.0L150.0 6.0");
  assert.equal(parent.querySelector("svg").getAttribute("aria-label"), "t");
  assert.equal(parent.querySelectorAll(".key .swatch").length, 1);
});

Deno.test("a chart without points has no axes", () => {
  const parent = place();
  chart(parent, { title: "t", lines: [], x: { label: "x" }, y: { label: "y" } });
  assert.equal(parent.querySelectorAll("line").length, 0);
});

Deno.test("two trainings have four curves, one has two, without those that are empty", () => {
  /** @type {Losses} */
  const arm = { losses: [[1, 2], [2, 1]], held: [], planned: 4 };
  /** @type {(arms: Record<string, Losses>) => number} */
  const count = (arms) => {
    const parent = place();
    lossCurves(parent, arms, 300);
    return parent.querySelectorAll("path.curve").length;
  };
  assert.equal(count({ a: arm, b: arm }), 4);
  assert.equal(count({ run: arm }), 1);
});

Deno.test("two trainings have their names at the ends of their held-out losses, on an axis that spans them", () => {
  /** @type {(end: number) => [string[], string[]]} */
  const drawn = (end) => {
    const parent = place(), held = [[0, 4], [4, 1]];
    lossCurves(parent, { a: { held, planned: 4 }, b: { held: [[0, 4], [4, end]], planned: 4 } }, 400);
    /** @type {(selector: string) => string[]} */
    const texts = (selector) => [...parent.querySelectorAll(selector)].map((text) => text.textContent ?? "");
    return [texts(".end"), texts(".tick[text-anchor=end]")];
  };
  assert.deepEqual(drawn(2)[0], ["a", "b"]);
  assert.ok(drawn(0.1)[1].includes("0.1")); // a factor of forty: logarithmic
  assert.ok(!drawn(0.5)[1].includes("0.5")); // a factor of eight: as they are
});

Deno.test("names are moved apart and stay above the axis", () => {
  assert.deepEqual(spread([10, 50], 13, 100), [10, 50]);
  assert.deepEqual(spread([50, 45], 13, 100), [58, 45]);
  assert.deepEqual(spread([99, 95, 98], 10, 100), [100, 80, 90]);
});
