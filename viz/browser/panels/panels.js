// The panels of the workbench: sections of text, tables, charts, and parts that answer the reader.

import { button, onArrows } from "../controls.js";
import { make } from "../elements.js";
import { KINDS } from "./kinds.js";

/**
 * What a part may use: `about`, the model of the widget if there is one, and `ask`, which sends a request.
 *
 * @typedef {{about: any, model: any, ask?: (call: string, args?: object, gesture?: string | null) => void}} Context
 */

function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}

/** The parts of a panel; those that follow the allocation come with it. */
const partsOf = ({ name, parts }, current) => (parts.length ? parts : current.parts?.[name] ?? []);

/** Whether a panel follows the allocation. */
const follows = ({ parts }) => !parts.length;

/**
 * All panels one below another, for the page.
 *
 * @returns {(current: any) => void} What has those follow the allocation that do.
 */
export function panelSections(parent, about, current, model, ask) {
  const followers = [], context = { about, model, ask };
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
 * One panel at a time behind tabs, for the widget; a second click on a tab closes it.
 *
 * @returns {() => void} What has the open panel follow the allocation, if it does.
 */
export function panelTabs(parent, about, model, ask) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, parent);
  const box = make("div", { class: "panel" }, parent);
  const open = (name) => {
    model.set("panel", name);
    model.save_changes();
    draw();
  };
  for (const { name, title, about: words } of about.panels) {
    const toggle = () => open(model.get("panel") === name ? "" : name);
    button(list, title, words.split(/(?<=\.) /)[0], toggle, { role: "tab", "data-panel": name });
  }
  onArrows(list, (target) => open(target.dataset.panel));
  const opened = () => about.panels.find(({ name }) => name === model.get("panel"));
  function draw() {
    const panel = opened();
    const reached = (panel ?? about.panels[0]).name; // by Tab
    for (const tab of list.children) {
      tab.setAttribute("aria-selected", tab.dataset.panel === panel?.name);
      tab.setAttribute("tabindex", tab.dataset.panel === reached ? 0 : -1);
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
