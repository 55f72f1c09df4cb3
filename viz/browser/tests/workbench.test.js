import assert from "node:assert/strict";
import { modelOf, place, resize, send } from "./dom.js";
import { ABOUT, CURRENT, RULE } from "./examples.js";
import widgets, { offline, renderPage } from "../widgets.js";

function workbench(about = ABOUT) {
  const el = place(),
    state = {
      about,
      current: CURRENT,
      stage: "allocation",
      tab: "rank",
      panel: "",
      selected: [1],
      training: {},
    };
  const model = modelOf(structuredClone(state));
  widgets.render({ model, el });
  resize();
  /** @type {(k: number) => any} */
  const cell = (k) => el.querySelector(`.cell[data-k='${k}']`);
  /** @type {(selector: string) => string} */
  const text = (selector) => el.querySelector(selector).textContent;
  /** @type {(label: string) => void} */
  const press = (label) => {
    const button = [...el.querySelectorAll("button")].find(({ textContent }) => textContent === label);
    send(button, "click");
  };
  return { el, model, cell, text, press };
}

Deno.test("the map has a cell for each module with its rank, and says what decided it", () => {
  const { el, cell, text } = workbench();
  assert.deepEqual([0, 1, 2].map((k) => cell(k).textContent), ["2", "1", "3"]);
  assert.equal(cell(1).getAttribute("aria-label"), "layer 0 v, rank 1, the least allowed");
  assert.equal(cell(1).getAttribute("aria-selected"), "true");
  assert.equal(text(".side h2"), "layer 0 v");
  assert.match(text(".said"), /^1kept: 2.*Sensitivity 0\.6 × the mean, which asks for 0\.4: 1 is the least allowed\.$/);
  assert.match(text(".legend"), /by hand.*the least allowed/);
  assert.equal(el.querySelector("[data-tab=kept]").hidden, true);
});

Deno.test("a rank by hand is compared with the nominal rank, if it is another one", () => {
  const { model, text } = workbench();
  model.set("selected", [2]);
  assert.match(text(".said"), /Set by hand to 3 instead of 2;/);
  model.set("current", { ...CURRENT, ranks: [2, 2, 2] });
  assert.match(text(".said"), /Set by hand to 2, the nominal rank;/);
});

Deno.test("costs are those of the shapes, and what changed is counted", () => {
  const { el, text } = workbench(), [parameters, adapter] = el.querySelectorAll(".fold tbody tr");
  /** @type {(row: Element) => (string | null)[]} */
  const cells = (row) => [...row.children].map(({ textContent }) => textContent);
  // Outputs 8, 4, 8 times the ranks; plain LoRA of rank 2 trains A too.
  assert.deepEqual(cells(parameters), ["trainable parameters", "40", "44", "110\u00a0%", "88"]);
  assert.deepEqual(cells(adapter).slice(1, 3), ["352 bytes", "368 bytes"]);
  assert.equal(text(".moved"), ""); // the comparison says it
  assert.match(
    text(".finding"),
    /^Ranks from 1 to 3 instead of 2 everywhere; most to layer 1 q\. 6 of 6 ranks; with A frozen, 50\u00a0% of the parameters that LoRA of rank 2 trains\.$/,
  );
});

Deno.test("experts with ranks of their own cost the largest, and their range is said", () => {
  const { el, model, text } = workbench({ ...ABOUT, experts: [2, 1, 1] });
  model.set("selected", [0]);
  model.set("current", {
    ...CURRENT,
    experts: [[1, 3], [], []],
    stored: { ranks: [3, 1, 3], kept: [2, 2, 2] },
  });
  el.querySelector(".side details").open = true;
  send(el.querySelector(".side details"), "toggle");
  assert.match(text(".side"), /mean of 2 experts, which have ranks 1 to 3; PEFT holds 3 for all/);
  const now = el.querySelector(".fold tbody tr").children[2].textContent;
  assert.equal(now, String(8 * 3 * 2 + 4 * 1 + 8 * 3));
});

Deno.test("the rank and the history are seen at once, all else behind three words", () => {
  const { el } = workbench(), folds = [...el.querySelectorAll("details.fold")];
  /** @type {(root: Element) => string[]} */
  const controls = (root) =>
    [...root.querySelectorAll(".control, button")].map(({ firstChild }) => firstChild?.textContent ?? "");
  assert.deepEqual(folds.map((fold) => fold.firstChild.textContent), ["Save and download", "Help", "Rule and budget"]);
  assert.equal(folds.some((fold) => fold.hasAttribute("open")), false);
  const [save, , rule] = folds.map(controls), bar = controls(el.querySelector(".tlora > .bar"));
  assert.deepEqual(bar.slice(0, -rule.length), ["Nominal rank", "Undo", "Redo", "Keep"]);
  assert.deepEqual(rule, ["Temperature", "Budget", "Scaling", "min_rank", "max_rank", "uniform", "Copy"]);
  assert.deepEqual(save, ["SVG", "PNG", "Page", "Save session, 1 kB"]);
});

Deno.test("keys and buttons send what they mean, one request at a time", () => {
  const { model, cell, press } = workbench();
  send(cell(1), "keydown", { key: "+" });
  send(cell(1), "keydown", { key: "x" });
  press("uniform");
  for (let i = 0; i < 3; i++) model.tell("msg:custom", { answer: 1, more: false });
  assert.deepEqual(model.sent.map(({ call, args }) => [call, args]), [
    ["set_rank", { modules: [1], rank: 2 }],
    ["leave_out", { modules: [1] }],
    ["preset", { name: "uniform" }],
  ]);
});

Deno.test("arrows select the next module, and Control and Z takes a change back", () => {
  const { el, model, cell } = workbench();
  cell(0).focus = cell(2).focus = () => {};
  send(el.querySelector(".map svg"), "keydown", { key: "ArrowUp" });
  send(el.querySelector(".map svg"), "keydown", { key: "ArrowRight", shiftKey: true });
  assert.deepEqual(model.get("selected"), [0, 2]);
  send(cell(0), "keydown", { key: "z", ctrlKey: true });
  assert.equal(model.sent.at(-1).call, "undo");
});

Deno.test("an answer of the kernel is drawn, and a refusal is said", () => {
  const { el, model, cell, text } = workbench();
  model.set("current", { ...CURRENT, ranks: [1, 1, 4], message: "no" });
  assert.equal(cell(2).textContent, "4");
  assert.equal(text(".message"), "no");
  send(el.querySelector("[data-tab=change]"), "click");
  assert.deepEqual([0, 1, 2].map((k) => cell(k).textContent), ["\u22121", "\u22121", "+2"]);
});

Deno.test("a panel opens and closes, and that of the allocation follows it", () => {
  const { el, model, text } = workbench();
  const word = el.querySelector("[data-panel=allocation] summary");
  send(word, "click");
  assert.equal(text(".parts caption"), "Ranks by projection");
  model.set("current", { ...CURRENT, parts: { allocation: [{ kind: "text", text: "other" }] } });
  assert.equal(text(".parts"), "other");
  send(word, "click");
  assert.equal(el.querySelector(".parts"), null);
});

Deno.test("two trainings are begun with the options that are set, followed, and stopped one by one", () => {
  const { el, model, text, press } = workbench();
  press("Train both");
  assert.deepEqual(model.sent.at(-1).args, { steps: 3, learning_rate: 0.002 });
  const { kept, new: last } = CURRENT.race?.arms ?? {};
  const followed = { planned: 3, step: 1, losses: [[1, 2]], held: [], updates: [0.1, 0.2, 0.3] };
  const arms = { kept: { ...kept, ...followed, running: true }, new: { ...last, ...followed, running: false } };
  model.set("training", { running: true, number: 0, said: "verdict", difference: "d", arms });
  assert.match(text(".arm"), /^keptk40 trained parametersstep 1 of 3, training loss 2\.00kept = 1Copy$/);
  assert.deepEqual([...el.querySelectorAll("[data-arm] , button[data-arm]")].length, 4);
  assert.equal(el.querySelector("[data-tab=kept]").hidden, false);
  model.tell("msg:custom", { answer: 1 });
  press("Stop kept");
  assert.deepEqual(model.sent.at(-1).args, { name: "kept" });
});

Deno.test("the page draws the workbench without a kernel, or panels alone if no module is known", () => {
  const rule = { ...RULE, scores: [1, 2, 7], floors: [0, 0, 0] };
  const state = { about: ABOUT, current: CURRENT, stage: "allocation", tab: "rank", selected: [0], rule };
  const el = place();
  renderPage(structuredClone(state), el);
  resize();
  assert.equal(el.querySelectorAll("details.panel").length, 2);
  assert.equal(el.querySelector(".train"), null);
  const moved = el.querySelector(".moved").textContent;
  assert.match(moved, /2 of 3 modules changed, 1 ranks more and 1 fewer, \+4 trainable parameters/);
  send(el.querySelector(".cell"), "keydown", { key: "+" });
  assert.equal(el.querySelector(".cell").textContent, "3");
  assert.equal(offline(state).get("about").page, true);
  const panels = place();
  renderPage({ about: { ...ABOUT, names: [], panels: ABOUT.panels.slice(0, 1) } }, panels);
  assert.equal(panels.querySelector("h2").textContent, "Data");
});

Deno.test("the monitor draws the losses and the updates of a training, and nothing before", () => {
  const el = place(), model = modelOf({ state: { status: "waiting" }, button: { label: "Stop", disabled: true } });
  widgets.render({ model, el });
  const stop = el.querySelector("button"), bar = () => el.querySelector(".bar").textContent;
  assert.equal(el.querySelector("svg"), null);
  assert.equal(bar(), "\u25a0 StopPass it to tlora.train(..., callbacks=[monitor]).");
  assert.equal(stop.disabled, true);
  model.set("button", { label: "Stop", disabled: false });
  assert.equal(stop.disabled, false);
  send(stop, "click");
  assert.deepEqual(model.sent, [{ call: "stop" }]);
  const arms = { run: { losses: [[1, 2]], held: [[1, 3]], planned: 2 } };
  const curves = { arms, rows: ["q"], columns: [0], cells: [[0, 0, 0.5, "50"]] };
  model.set("state", { status: "stopping", line: "Stopping after step 1 of 2", detail: "1 s", ...curves });
  assert.equal(bar(), "\u25a0 StopEnds after this step.");
  assert.equal(el.querySelector(".status").textContent, "Stopping after step 1 of 21 s");
  assert.equal(el.querySelectorAll("path.curve").length, 2);
  assert.equal(el.querySelectorAll("rect.grid").length, 1);
});
