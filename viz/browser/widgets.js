// What the widgets of a notebook and the page without a kernel run, bundled into `viz/widgets/widgets.js`.

import { renderMonitor } from "./monitor.js";
import { renderWorkbench } from "./workbench/workbench.js";

/** @import { Model, ModelOf, MonitorTraits } from "./traits.js" */

export { offline } from "./offline.js";
export { renderPage } from "./page.js";

/**
 * Draws the widget of a model: the workbench has `about`, the training monitor `state` alone.
 *
 * @type {(widget: {model: Model & ModelOf<MonitorTraits>, el: HTMLElement}) => void | (() => void)}
 */
function render({ model, el }) {
  return model.get("about") ? renderWorkbench({ model, el }) : renderMonitor({ model, el });
}
export default { render };
