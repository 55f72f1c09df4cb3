import assert from "node:assert/strict";
import { modelOf, place, send } from "./dom.js";
import { ABOUT, CURRENT } from "./examples.js";
import { expertsPart } from "../panels/experts.js";

/** @import { Part } from "../panels/experts.js" */

// Two layers of two experts; modules 0 and 1 of the map hold those of the first layer, module 2 those of the second.
/** @type {Part} */
const PART = {
  layers: [3, 5],
  column: [0, 0, 1, 1],
  expert: [0, 1, 0, 1],
  measures: [
    { name: "tokens", about: "a", unit: "tokens", kind: "count", values: [1200, 0, 300, 4] },
    {
      name: "compared with prose",
      about: "d",
      unit: "points",
      kind: "points",
      values: [0.2, -0.1, 0, 0.05],
      low: [0.1, -0.3, -0.1, 0.01],
      high: [0.3, 0.1, 0.1, 0.09],
    },
  ],
  parameters: [[0, 1], [2]],
};

/** @param {any} model */
function panel(model = null) {
  const root = place();
  expertsPart(root, structuredClone(PART), { about: ABOUT, model, ask: null });
  const said = () => root.querySelector(".finding").textContent;
  const fills = () => [...root.querySelectorAll("rect")].map((rect) => rect.getAttribute("fill"));
  /** @type {(name: string) => any} */
  const press = (name) => send(root.querySelector(`[data-measure="${name}"]`), "click");
  return { root, said, fills, press };
}

Deno.test("the expert with most tokens is named first, and one without tokens is gray", () => {
  const { root, said, fills } = panel();
  assert.equal(said(), "Layer 3 expert 0: tokens 1,200, compared with prose +20 points (+10 to +30).");
  assert.deepEqual([fills()[0], fills()[1]], ["rgb(0,104,116)", "rgb(220,220,220)"]);
  assert.match(
    root.querySelector(".legend").textContent,
    /^03001,200 \(tokens; experts down, layers across; gray: 0\)$/,
  );
  assert.deepEqual([...root.querySelectorAll("button")].map((b) => b.textContent), ["Tokens", "Compared with prose"]);
});

Deno.test("pointer and arrows say the numbers of an expert, which stays while another measure is shown", () => {
  const { root, said, press } = panel(), cells = root.querySelectorAll("rect");
  send(cells[2], "pointermove");
  assert.match(said(), /^Layer 5 expert 0: tokens 300,/);
  send(root.querySelector("[role=group][tabindex]"), "keydown", { key: "ArrowDown" });
  assert.match(said(), /^Layer 5 expert 1: tokens 4,/);
  send(root.querySelector("[role=group][tabindex]"), "keydown", { key: "ArrowRight" });
  assert.match(said(), /^Layer 5 expert 1/);
  press("compared with prose");
  assert.match(said(), /^Layer 5 expert 1/);
  assert.equal(root.querySelector("rect.on"), root.querySelectorAll("rect")[3]);
});

Deno.test("differences are red and blue, with a dot where the interval excludes zero", () => {
  const { root, fills, press } = panel();
  press("compared with prose");
  assert.equal(fills()[0], "rgb(178,24,43)");
  assert.equal(fills()[2], "rgb(255,255,255)");
  assert.equal(root.querySelectorAll("circle.clear").length, 2);
});

Deno.test("ranks are those of the parameters of the map, and follow it", () => {
  const model = modelOf({ current: CURRENT }), { root, said, press } = panel(model);
  press("rank");
  assert.match(said(), /^Layer 3 expert 0: .*, rank 3\.$/);
  model.set("current", { ...CURRENT, ranks: [4, 4, 1] });
  assert.match(said(), /rank 8\.$/);
  assert.match(root.querySelector(".legend").textContent, /8 \(ranks of q and v together;/);
});

Deno.test("experts with ranks of their own have those", () => {
  const current = { ...CURRENT, ranks: [2, 2, 1], experts: [[1, 3], [2, 2], []] };
  const { root, said, press } = panel(modelOf({ current }));
  press("rank");
  const cells = root.querySelectorAll("rect");
  const words = [0, 1, 2].map((k) => {
    send(cells[k], "pointermove");
    return said().split(", ").at(-1);
  });
  assert.deepEqual(words, ["rank 3.", "rank 5.", "rank 1."]);
  assert.match(root.querySelector("[data-measure=rank]").dataset.tip ?? root.innerHTML, /PEFT holds the largest/);
});
