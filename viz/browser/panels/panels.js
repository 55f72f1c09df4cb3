// The panels of the workbench: sections of text, tables, charts, and parts that answer the reader.

import { make, write } from "../elements.js";
import { describe, explainer } from "../explain.js";
import { Requests } from "../workbench/requests.js";
import { KINDS } from "./kinds.js";

/** @import { About, Ask, Current, Model, Panel, Part } from "../traits.js" */

/**
 * What a part may use: `about`, and if modules are known the model of the widget and `ask`, which sends a request.
 *
 * @typedef {{about: About, model: Model | null, ask: Ask | null}} Context
 */

/** @typedef {Partial<Pick<Current, "parts">>} Shown What a panel may follow. */

/** @type {(parent: Element, parts: Part[], context: Context) => void} */
function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}

/**
 * The parts of a panel; those that follow the allocation come with it.
 *
 * @type {(panel: Panel, current: Shown) => Part[]}
 */
const partsOf = ({ name, parts }, current) => (parts.length ? parts : current.parts?.[name] ?? []);

/**
 * Whether a panel follows the allocation.
 *
 * @type {(panel: Panel) => boolean}
 */
const follows = ({ parts }) => !parts.length;

/**
 * All panels one below another, without a map: on a page, or of one result in a notebook. A `model` answers them if
 * its kernel has an adapted model.
 *
 * @type {(about: About, el: HTMLElement, model?: Model | null) => void}
 */
export function renderPanels(about, el, model = null) {
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el); // typing stays in here
  explainer(root);
  make("h1", {}, root, about.title);
  const ask = model && asking(model, make("div", { class: "message", role: "status" }, root));
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, root);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawParts(make("div", { class: "parts" }, section), panel.parts, { about, model, ask });
  }
}

/**
 * What asks the kernel for something; what it refuses is written.
 *
 * @type {(model: Model, message: Element) => Ask}
 */
function asking(model, message) {
  const requests = new Requests(model, () => false, () => false);
  model.on("msg:custom", () => requests.answered(false));
  model.on("change:current", () => write(message, model.get("current").message ?? ""));
  return (call, args, gesture) => requests.ask(call, args, gesture);
}

/**
 * The panels of the stage that is shown, folded below their headings; one at a time is open.
 *
 * @param {Element} parent
 * @param {About} about
 * @param {Model} model
 * @param {Ask} ask
 * @returns {() => void} What has the open panel follow the allocation, if it does.
 */
export function panelFolds(parent, about, model, ask) {
  const context = { about, model, ask }, folds = about.panels.map((panel) => drawFold(parent, panel, model));
  /** @type {(panel: Panel) => boolean} */
  const isOpen = ({ name, stage }) => name === model.get("panel") && stage === model.get("stage");
  function draw() {
    for (const { panel, fold, box } of folds) {
      fold.hidden = panel.stage !== model.get("stage");
      fold.open = isOpen(panel);
      box.replaceChildren();
      if (!isOpen(panel)) continue;
      if (panel.about) make("p", { class: "about" }, box, panel.about);
      drawParts(make("div", { class: "parts" }, box), partsOf(panel, model.get("current")), context);
    }
  }
  for (const trait of ["stage", "panel", "compared"]) model.on(`change:${trait}`, draw);
  draw();
  return () => {
    if (folds.some(({ panel }) => isOpen(panel) && follows(panel))) draw();
  };
}

/**
 * A panel that opens and closes at a click on its heading.
 *
 * @type {(parent: Element, panel: Panel, model: Model) => {panel: Panel, fold: HTMLDetailsElement, box: HTMLElement}}
 */
function drawFold(parent, panel, model) {
  const fold = make("details", { class: "panel", "data-panel": panel.name }, parent);
  const heading = describe(make("summary", {}, fold, panel.title), panel.about.split(/(?<=\.) /)[0]);
  heading.addEventListener("click", (event) => {
    event.preventDefault(); // the kernel and other views of the widget follow
    model.set("panel", model.get("panel") === panel.name ? "" : panel.name);
    model.save_changes();
  });
  return { panel, fold, box: make("div", {}, fold) };
}
