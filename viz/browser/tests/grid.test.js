import assert from "node:assert/strict";
import { place } from "./dom.js";
import { make } from "../elements.js";
import { cellGrid, labelMembers, membersOf, moduleGrid, neighbor, setLength } from "../grid.js";

/** @import { Shape, Words } from "../grid.js" */
/** @import { GridCell } from "../traits.js" */

// Two projections in three layers; the middle layer has the first alone.
const MODULES = { rows: ["q", "v"], columns: [0, 1, 2], row: [0, 1, 0, 0, 1], column: [0, 0, 1, 2, 2] };
const SHAPE = { left: 50, right: 40, top: 30, w: 20, letters: 24, font: 9, tall: 20, above: 3, inset: 1 };
/** @type {Words} */
const WORDS = { layer: (i) => [i, `layer ${i}`], column: (name) => `column ${name}`, row: (name) => `row ${name}` };

/** @type {(shape: Partial<Shape>) => ReturnType<typeof moduleGrid>} */
const draw = (shape) => moduleGrid(make("svg", {}, place()), MODULES, { ...SHAPE, ...shape }, WORDS);

Deno.test("every module has one cell, in its row and below its layer", () => {
  const { cells, bars } = draw({});
  assert.equal(cells.length, 5);
  cells.forEach(({ g }, k) => {
    const at = g.getAttribute("transform")?.match(/[\d.]+/g)?.map(Number);
    assert.deepEqual(at, [50 + 20 * MODULES.column[k], 30 + 22 * MODULES.row[k]]);
    assert.equal(g.parentElement?.querySelector("[role=rowheader]")?.getAttribute("data-row"), String(MODULES.row[k]));
  });
  assert.deepEqual(bars.map(({ which }) => which), ["column", "column", "column", "row", "row"]);
});

Deno.test("in two bands layers go on below, with bars of their own, and every module is still there once", () => {
  const { cells, bars } = draw({ bands: 2, gaps: [0, 8] });
  /** @type {(k: number) => number} */
  const y = (k) => Number(cells[k].g.getAttribute("transform")?.match(/ (\d+)/)?.[1]);
  assert.equal(cells.filter(Boolean).length, 5);
  assert.equal(y(1), 30 + 22 + 8);
  assert.ok(y(3) > y(1));
  assert.equal(bars.filter(({ which }) => which === "row").length, 4);
});

Deno.test("arrows pass over empty places and end at the edge", () => {
  assert.equal(neighbor(MODULES, 1, [1, 0]), 4);
  assert.equal(neighbor(MODULES, 0, [0, 1]), 1);
  assert.equal(neighbor(MODULES, 2, [0, 1]), -1);
  assert.equal(neighbor(MODULES, 0, [-1, 0]), -1);
});

Deno.test("a label stands for the modules of its row or column", () => {
  const { cells } = draw({}), svg = cells[0].g.ownerSVGElement ?? cells[0].g.closest("svg");
  /** @type {(selector: string) => {target: EventTarget | null}} */
  const target = (selector) => ({ target: svg?.querySelector(selector) ?? null });
  assert.deepEqual(labelMembers(MODULES, target("[data-row='1']")), [1, 4]);
  assert.deepEqual(labelMembers(MODULES, target("[data-column='2']")), [3, 4]);
  assert.equal(labelMembers(MODULES, { target: cells[0].g }), null);
  assert.deepEqual(membersOf(MODULES, "column", 1), [2]);
});

Deno.test("a bar grows from its base", () => {
  const { bars: [column] } = draw({});
  setLength(column, 0.5);
  assert.equal(column.rect.getAttribute("height"), "10");
  assert.equal(column.rect.getAttribute("y"), String(30 - 3 - 10));
});

Deno.test("cells to look at: unknown values have the color of the ground", () => {
  const parent = place();
  /** @type {GridCell[]} */
  const cells = [[0, 0, 1, "9"], [1, 0, null, ""], [1, 1, 0, "0"]];
  cellGrid(parent, { title: "t", rows: ["q", "v"], columns: [0, 1], cells, most: 1 });
  const fills = [...parent.querySelectorAll("rect")].map((rect) => rect.getAttribute("fill"));
  assert.deepEqual(fills, ["rgb(0,104,116)", "rgb(255,255,255)", "rgb(255,255,255)"]);
});
