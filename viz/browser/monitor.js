// The training monitor: losses over the steps, and how far each module has moved.

import { lossCurves } from "./chart.js";
import { make } from "./elements.js";
import { explainer } from "./explain.js";
import { cellGrid } from "./grid.js";
import { percent } from "./text.js";

/** Draws the monitor of a model, and again whenever its state changes. */
export function renderMonitor({ model, el }) {
  const root = make("div", { class: "tlora monitor" }, el);
  function draw() {
    const { arms, rows, columns, cells } = model.get("state");
    root.replaceChildren();
    explainer(root);
    if (!arms) return;
    const width = Math.max(320, Math.min(820, el.clientWidth || 640));
    lossCurves(root, arms, width);
    if (!cells.length) return;
    const most = Math.max(...cells.map(([, , share]) => share ?? 0), 1e-12);
    const words = `Update of each module relative to its weight, up to ${percent(most)}`;
    make("div", { class: "key" }, root, `${words}: projections down, layers across`);
    cellGrid(root, { title: "Update of each module", rows, columns, cells, most, width });
  }
  model.on("change:state", draw);
  draw();
  keepKeys(el);
}

/** Has JupyterLab take no key pressed in here for a shortcut, such as Enter on the button. */
function keepKeys(el) {
  if (!el.isConnected) return requestAnimationFrame(() => keepKeys(el));
  const box = el.closest(".widget-vbox");
  if (box) box.dataset.lmSuppressShortcuts = "true";
}
