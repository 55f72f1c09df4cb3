// The page without a kernel.

import { offline } from "./offline.js";
import { renderPanels } from "./panels/panels.js";
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
  else renderPanels(data.about, el);
}
