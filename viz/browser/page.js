// The page without a kernel.

import { make } from "./elements.js";
import { offline } from "./offline.js";
import { panelSections } from "./panels/panels.js";
import { renderWorkbench } from "./workbench/workbench.js";

/** @import { Data } from "./offline.js" */

/** @typedef {Pick<Data, "about">} PanelsAlone */

/** @type {(data: Data | PanelsAlone) => data is Data} */
const isWhole = (data) => data.about.names.length > 0;

/**
 * Draws the workbench if modules are known, else the panels alone.
 *
 * @type {(data: Data | PanelsAlone, el: HTMLElement) => void}
 */
export function renderPage(data, el) {
  if (isWhole(data)) renderWorkbench({ model: offline(data), el });
  else {
    const root = make("div", { class: "tlora" }, el);
    make("h1", {}, root, data.about.title);
    panelSections(root, data.about, {});
  }
}
