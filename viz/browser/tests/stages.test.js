import assert from "node:assert/strict";
import { modelOf, place, resize, send } from "./dom.js";
import { ABOUT, CURRENT } from "./examples.js";
import { renderWorkbench } from "../workbench/workbench.js";

/** @type {(about?: object) => {el: any, model: any, open: (stage: string) => void, text: (selector: string) => string}} */
function workbench(about = {}) {
  const state = { about: { ...ABOUT, ...about }, current: CURRENT, stage: "allocation", tab: "rank", panel: "" };
  const el = place(), model = modelOf(structuredClone({ ...state, selected: [1], training: {} }));
  renderWorkbench({ model, el });
  resize();
  /** @type {(stage: string) => void} */
  const open = (stage) => void send(el.querySelector(`[data-stage=${stage}]`), "click");
  /** @type {(selector: string) => string} */
  const text = (selector) => el.querySelector(selector).textContent;
  return { el, model, open, text };
}

Deno.test("the rail has the number of every stage, that of the allocation follows it", () => {
  const { el, model, text } = workbench();
  const said = () =>
    [...el.querySelectorAll(".rail button")].map((one) => [...one.children].map((part) => part.textContent));
  assert.deepEqual(said(), [
    ["1 Data", "16", "samples"],
    ["2 Spectra", "\u2013", "not run"],
    ["3 Allocation", "1 to 3", "instead of 2 everywhere"],
    ["4 Answers", "4 of 5", "right"],
  ]);
  model.set("current", { ...CURRENT, ranks: [2, 2, 2] });
  assert.deepEqual(said()[2], ["3 Allocation", "2", "everywhere"]);
  model.set("current", { ...CURRENT, ranks: [2, 0, 2] });
  assert.deepEqual(said()[2], ["3 Allocation", "2", "in 2 of 3 modules"]);
  assert.match(text(".finding"), /^Every module that is adapted gets rank 2\./);
});

Deno.test("a stage shows its sentence and its panels, the first of them open, and hides the map and other panels", () => {
  const { el, model, open, text } = workbench(), parts = [".map", ".side", ".race", ".tabs"];
  const hidden = () => parts.map((selector) => el.querySelector(selector).hidden);
  const folds = () => [...el.querySelectorAll(".panel:not([hidden])")].map(({ dataset }) => dataset.panel);
  assert.deepEqual([hidden(), folds()], [[false, false, false, false], ["allocation"]]);
  open("data");
  assert.deepEqual([hidden(), folds()], [[true, true, true, true], ["data"]]);
  assert.deepEqual([model.get("stage"), model.get("panel")], ["data", "data"]);
  assert.equal(text(".finding"), "16 samples.");
  assert.equal(text(".parts"), "words");
  assert.equal(el.querySelector("[aria-current=true]").dataset.stage, "data");
  open("allocation");
  assert.deepEqual([hidden(), folds(), model.get("panel")], [[false, false, false, false], ["allocation"], ""]);
  assert.match(text(".finding"), /^Ranks from 1 to 3/);
});

Deno.test("a stage that was not run says which line of Python runs it, also if its number is known", () => {
  const { el, open, text } = workbench(), missing = el.querySelector(".missing");
  assert.equal(missing.hidden, true);
  for (const [stage, code] of [["spectra", "viz.Workbench(spectrum)"], ["answers", "attribute"]]) {
    open(stage);
    assert.deepEqual([missing.hidden, text(".missing code"), el.querySelector(".map").hidden], [false, code, true]);
  }
  assert.equal(text(".finding"), "4 of 5.");
  open("data");
  assert.equal(missing.hidden, true);
});

Deno.test("the map shows the tabs of its stage, and ranks if the stage has none", () => {
  const energy = {
    name: "energy",
    title: "Energy",
    unit: "",
    stage: "spectra",
    kind: "percent",
    values: [0.1, 0.2, 0.3],
  };
  const reads = { name: "reads", title: "Reads", stage: "directions", about: "", parts: [] };
  const directions = { ...ABOUT.stages[1], name: "directions" };
  const stages = [...ABOUT.stages, directions], panels = [...ABOUT.panels, reads];
  const { el, open } = workbench({ tabs: [...ABOUT.tabs, energy], stages, panels });
  const tabs = () =>
    [...el.querySelectorAll("[data-tab]")].filter((tab) => !tab.hidden).map(({ dataset }) => dataset.tab);
  const cells = () => [0, 1, 2].map((k) => el.querySelector(`.cell[data-k='${k}']`).textContent);
  assert.deepEqual(tabs(), ["rank", "change", "sensitivity"]);
  open("spectra");
  assert.deepEqual([tabs(), cells()], [["energy"], ["10", "20", "30"]]);
  open("directions");
  assert.deepEqual([tabs(), cells()], [[], ["2", "1", "3"]]);
  assert.deepEqual([el.querySelector(".map").hidden, el.querySelector(".tabs").hidden], [false, true]);
});
