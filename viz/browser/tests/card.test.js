import assert from "node:assert/strict";
import { modelOf, place, resize, send } from "./dom.js";
import { ABOUT, CURRENT } from "./examples.js";
import { renderWorkbench } from "../workbench/workbench.js";

/** @type {(about?: object, selected?: number[]) => {side: any, model: ReturnType<typeof modelOf>}} */
function card(about = {}, selected = [1]) {
  const state = {
    about: { ...ABOUT, ...about },
    current: CURRENT,
    stage: "allocation",
    tab: "rank",
    panel: "",
    selected,
    training: {},
  };
  const el = place(), model = modelOf(structuredClone(state));
  renderWorkbench({ model, el });
  resize();
  return { side: el.querySelector(".side"), model };
}

Deno.test("shares are numbers with bars: of scores and budget compared with the largest, of the rank with the whole", () => {
  const curve = {
    name: "captured",
    title: "",
    unit: "of the gradient",
    stage: "directions",
    kind: "percent",
    curves: [[], [0.25], []],
  };
  const { side } = card({ tabs: [...ABOUT.tabs, curve] }), rows = [...side.querySelectorAll(".share")];
  assert.deepEqual(rows.map((row) => [...row.children].slice(0, 2).map(({ textContent }) => textContent)), [
    ["of all scores", "20\u00a0%"],
    ["of the budget", "17\u00a0%"],
    ["of the gradient", "25\u00a0%"],
  ]);
  const bars = [...side.querySelectorAll(".track div")].map((bar) => bar.getAttribute("style"));
  assert.deepEqual(bars, ["width: 29%", "width: 33%", "width: 25%"]);
  const notes = rows.map((row) => row.querySelector("small")?.textContent ?? "");
  assert.deepEqual(notes, [
    "full: the most, 70\u00a0%; tick: the mean, 33\u00a0%",
    "full: the most, 50\u00a0%; tick: the mean, 33\u00a0%",
    "",
  ]);
});

Deno.test("the stepper gives all selected modules one rank more or fewer than the last has, and never none", () => {
  const { side, model } = card({}, [2, 1]), [fewer, more] = side.querySelectorAll(".ranked button");
  send(fewer, "click");
  assert.deepEqual(model.sent, []);
  send(more, "click");
  assert.deepEqual(model.sent.map(({ call, args }) => [call, args]), [["set_rank", { modules: [2, 1], rank: 2 }]]);
});

Deno.test("the words of the module are shown if the directions were read", () => {
  const reads = {
    name: "reads",
    title: "Reads",
    stage: "directions",
    about: "",
    parts: [{ kind: "reads", words: [[], [" lamp", "fan\n"], []] }],
  };
  /** @type {(side: any) => string[]} */
  const tokens = (side) => [...side.querySelectorAll(".strips .token")].map(({ textContent }) => textContent);
  const { side, model } = card({ panels: [reads] });
  assert.deepEqual(tokens(side), [" lamp", "fan\u23ce"]);
  model.set("selected", [0]);
  assert.deepEqual(tokens(side), []);
  assert.deepEqual(tokens(card().side), []);
});
