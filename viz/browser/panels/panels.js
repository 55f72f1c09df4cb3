// The panels of the workbench: sections of text, tables, charts, and parts that answer the reader.

import { button, onArrows } from "../controls.js";
import { make, put } from "../elements.js";
import { explainer } from "../explain.js";
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
 * All panels one below another, for the page.
 *
 * @param {Element} parent
 * @param {About} about
 * @param {Shown} current
 * @param {Model | null} model
 * @param {Ask | null} ask
 * @returns {(current: Shown) => void} What has those follow the allocation that do.
 */
export function panelSections(parent, about, current, model = null, ask = null) {
  const context = { about, model, ask };
  /** @type {{panel: Panel, box: Element}[]} */
  const followers = [];
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, parent);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    const box = make("div", { class: "parts" }, section);
    drawParts(box, partsOf(panel, current), context);
    if (follows(panel)) followers.push({ panel, box });
  }
  return (current) => {
    for (const { panel, box } of followers) {
      box.replaceChildren();
      drawParts(box, partsOf(panel, current), context);
    }
  };
}

/**
 * The panels without a map: on a page, or of one result in a notebook.
 *
 * @type {(about: About, el: HTMLElement) => void}
 */
export function renderPanels(about, el) {
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el); // typing stays in here
  explainer(root);
  make("h1", {}, root, about.title);
  panelSections(root, about, {});
}

/**
 * One panel at a time behind tabs, for the widget; a second click on a tab closes it.
 *
 * @param {Element} parent
 * @param {About} about
 * @param {Model} model
 * @param {Ask} ask
 * @returns {() => void} What has the open panel follow the allocation, if it does.
 */
export function panelTabs(parent, about, model, ask) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, parent);
  const box = make("div", { class: "panel" }, parent);
  /** @type {(name: string) => void} */
  const open = (name) => {
    model.set("panel", name);
    model.save_changes();
    draw();
  };
  for (const { name, title, about: words } of about.panels) {
    const toggle = () => open(model.get("panel") === name ? "" : name);
    button(list, title, words.split(/(?<=\.) /)[0], toggle, { role: "tab", "data-panel": name });
  }
  onArrows(list, (target) => open(target.dataset.panel ?? ""));
  const opened = () => about.panels.find(({ name }) => name === model.get("panel"));
  function draw() {
    const panel = opened();
    const reached = (panel ?? about.panels[0]).name; // by Tab
    for (const tab of list.querySelectorAll("button")) {
      put(tab, "aria-selected", tab.dataset.panel === panel?.name);
      put(tab, "tabindex", tab.dataset.panel === reached ? 0 : -1);
    }
    box.replaceChildren();
    if (!panel) return;
    if (panel.about) make("p", { class: "about" }, box, panel.about);
    drawParts(make("div", { class: "parts" }, box), partsOf(panel, model.get("current")), { about, model, ask });
  }
  model.on("change:panel", draw);
  model.on("change:compared", draw);
  draw();
  return () => {
    const panel = opened();
    if (panel && follows(panel)) draw();
  };
}
