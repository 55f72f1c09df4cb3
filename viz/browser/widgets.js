// What the widgets of a notebook and the page without a kernel run, bundled into `viz/widgets/widgets.js`.

import { renderMonitor } from "./monitor.js";
import { renderPanels } from "./panels/panels.js";
import { renderWorkbench } from "./workbench/workbench.js";

/** @import { Model, ModelOf, MonitorTraits } from "./traits.js" */

export { offline } from "./offline.js";
export { renderPage } from "./page.js";

/**
 * Draws the widget of a model: the training monitor has `state` alone, the others `about`, without modules if they are
 * the panels of one result.
 *
 * @type {(widget: {model: Model & ModelOf<MonitorTraits>, el: HTMLElement}) => void | (() => void)}
 */
function render({ model, el }) {
  const about = model.get("about");
  if (!about) return renderMonitor({ model, el });
  return about.names.length ? renderWorkbench({ model, el }) : renderPanels(about, el, about.live ? model : null);
}
export default { render };
