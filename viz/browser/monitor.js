import { lossCurves } from "./chart.js";
import { make } from "./elements.js";
import { explainer } from "./explain.js";
import { cellGrid } from "./grid.js";
import { percent } from "./text.js";

// The training monitor: losses over the steps, and how far each module has moved.
export function renderMonitor({ model, el }) {
  const root = make("div", { class: "tlora monitor" }, el);
  function draw() {
    const state = model.get("state");
    root.replaceChildren();
    explainer(root);
    if (!state.arms) return;
    const width = Math.max(320, Math.min(820, el.clientWidth || 640)),
      most = Math.max(...state.cells.map(([, , share]) => share ?? 0), 1e-12);
    lossCurves(root, state.arms, width);
    if (!state.cells.length) return;
    make(
      "div",
      { class: "key" },
      root,
      `Update of each module relative to its weight, up to ${percent(most)}: projections down, layers across`,
    );
    cellGrid(root, {
      title: "Update of each module",
      rows: state.rows,
      columns: state.columns,
      cells: state.cells,
      most,
      width,
    });
  }
  model.on("change:state", draw);
  draw();
  const mark = () => { // Enter on the button is not a shortcut of JupyterLab
    if (!el.isConnected) return requestAnimationFrame(mark);
    const box = el.closest(".widget-vbox");
    if (box) box.dataset.lmSuppressShortcuts = "true";
  };
  mark();
}
