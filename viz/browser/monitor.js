// The training monitor: a button that stops the training, how it stands, its losses, and how far each module has moved.

import { lossCurves } from "./chart.js";
import { make } from "./elements.js";
import { describe, explainer } from "./explain.js";
import { cellGrid } from "./grid.js";
import { percent } from "./text.js";

/** @import { ModelOf, MonitorTraits } from "./traits.js" */

/** @typedef {MonitorTraits["state"]} State */

const STOP = "End training after this step and keep the run";
/** @type {Record<string, string>} */
const NOTES = {
  training: "Interrupting the kernel stops training too. Either way the run is kept.",
  stopping: "Ends after this step.",
};

/**
 * Draws the monitor of a model, which then follows it.
 *
 * @type {(widget: {model: ModelOf<MonitorTraits>, el: HTMLElement}) => void}
 */
export function renderMonitor({ model, el }) {
  // Keys pressed in here, such as Enter on the button, are no shortcuts of JupyterLab.
  const root = make("div", { class: "tlora monitor", "data-lm-suppress-shortcuts": "true" }, el);
  const bar = make("div", { class: "bar" }, root), stop = describe(make("button", { type: "button" }, bar), STOP);
  make("span", { "aria-hidden": "true" }, stop, "\u25a0 ");
  const label = make("span", {}, stop), note = make("span", {}, bar);
  const status = make("div", { class: "status" }, root), curves = make("div", {}, root);
  explainer(root);
  stop.addEventListener("click", () => model.send({ call: "stop" }));
  function follow() {
    const button = model.get("button");
    label.textContent = button.label;
    stop.disabled = button.disabled;
  }
  function draw() {
    const state = model.get("state");
    drawNote(note, state);
    status.replaceChildren();
    if (state.line) make("b", {}, status, state.line);
    make("div", {}, status, state.detail ?? "");
    curves.replaceChildren();
    if (state.arms) drawCurves(curves, state, Math.max(320, Math.min(820, el.clientWidth || 640)));
  }
  model.on("change:button", follow);
  model.on("change:state", draw);
  follow();
  draw();
}

/** @type {(note: Element, state: State) => void} */
function drawNote(note, { status }) {
  note.textContent = NOTES[status] ?? "";
  if (status !== "waiting") return;
  make("code", {}, note, "tlora.train(..., callbacks=[monitor])");
  note.prepend("Pass it to ");
  note.append(".");
}

/** @type {(parent: Element, state: State, width: number) => void} */
function drawCurves(parent, { arms = {}, rows = [], columns = [], cells = [] }, width) {
  lossCurves(parent, arms, width);
  if (!cells.length) return;
  const most = Math.max(...cells.map(([, , share]) => share ?? 0), 1e-12);
  const words = `Update of each module relative to its weight, up to ${percent(most)}`;
  make("div", { class: "key" }, parent, `${words}: projections down, layers across`);
  cellGrid(parent, { title: "Update of each module", rows, columns, cells, most, width });
}
