// The panels of the workbench: sections of text, tables, charts, and parts that answer the reader.

import { chart } from "../chart.js";
import { button, onArrows } from "../controls.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { alignmentPart } from "./alignment.js";
import { attributionPart } from "./attribution/attribution.js";
import { effectsPart } from "./effects.js";
import { readsPart } from "./reads.js";
import { rescalingPart } from "./rescaling.js";

/**
 * What a part may use: `about`, the model of the widget if there is one, and `ask`, which sends a request.
 *
 * @typedef {{about: any, model: any, ask?: (call: string, args?: object, gesture?: string | null) => void}} Context
 */

/** @type {Record<string, (parent: Element, part: any, context: any) => void>} */
const KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code: drawCode,
  chart: drawChart,
  alignment: alignmentPart,
  reads: readsPart,
  attribution: attributionPart,
  effects: effectsPart,
  rescaling: rescalingPart,
};

function drawCode(parent, { caption, code }) {
  make("div", { class: "key" }, parent, caption);
  make("pre", { tabindex: 0, role: "region", "aria-label": caption }, parent, code);
}

function drawChart(parent, part) {
  const y = part.y.percent ? { min: 0, max: 1, ...part.y } : part.y;
  chart(parent, { ...part, title: part.caption, width: 560, height: 220, y });
}

function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}

/**
 * All panels one below another, for the page.
 *
 * @returns {(current: any) => void} What has the panel of the allocation follow it.
 */
export function panelSections(parent, about, current, model, ask) {
  const drawn = {}, context = { about, model, ask };
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, parent);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawn[panel.name] = make("div", { class: "parts" }, section);
    drawParts(drawn[panel.name], panel.name === "allocation" ? current.allocation : panel.parts, context);
  }
  return (current) => {
    drawn.allocation?.replaceChildren();
    if (drawn.allocation) drawParts(drawn.allocation, current.allocation, context);
  };
}

/**
 * One panel at a time behind tabs, for the widget; a second click on a tab closes it.
 *
 * @returns {() => void} What has the panel of the allocation follow it.
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
  function draw() {
    const panel = about.panels.find(({ name }) => name === model.get("panel"));
    const reached = (panel ?? about.panels[0]).name; // by Tab
    for (const tab of list.children) {
      tab.setAttribute("aria-selected", tab.dataset.panel === panel?.name);
      tab.setAttribute("tabindex", tab.dataset.panel === reached ? 0 : -1);
    }
    box.replaceChildren();
    if (!panel) return;
    if (panel.about) make("p", { class: "about" }, box, panel.about);
    const parts = panel.name === "allocation" ? model.get("current").allocation ?? [] : panel.parts;
    drawParts(make("div", { class: "parts" }, box), parts, { about, model, ask });
  }
  model.on("change:panel", draw);
  model.on("change:compared", draw);
  draw();
  return () => {
    if (model.get("panel") === "allocation") draw();
  };
}
