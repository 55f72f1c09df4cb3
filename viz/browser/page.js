// The page without a kernel.

import { make } from "./elements.js";
import { offline } from "./offline.js";
import { panelSections } from "./panels/panels.js";
import { renderWorkbench } from "./workbench/workbench.js";

/** Draws the workbench if modules are known, else the panels alone. */
export function renderPage(data, el) {
  if (data.about.names.length) return renderWorkbench({ model: offline(data), el });
  panelSections(make("div", { class: "tlora" }, el), data.about, {}, null);
}
