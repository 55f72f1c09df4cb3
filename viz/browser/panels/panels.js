import { chart } from "../chart.js";
import { make, onArrows } from "../elements.js";
import { describe } from "../explain.js";
import { alignmentPart } from "./alignment.js";
import { attributionPart } from "./attribution.js";
import { effectsPart } from "./effects.js";
import { readsPart } from "./reads.js";
import { rescalingPart } from "./rescaling.js";
import { drawTable } from "../table.js";

const KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code(parent, part) {
    make("div", { class: "key" }, parent, part.caption);
    make("pre", { tabindex: 0, role: "region", "aria-label": part.caption }, parent, part.code);
  },
  chart: (parent, part) =>
    chart(parent, {
      ...part,
      title: part.caption,
      width: 560,
      height: 220,
      y: part.y.percent ? { min: 0, max: 1, ...part.y } : part.y,
    }),
  alignment: (parent, part, context) => alignmentPart(parent, part, context),
  reads: (parent, part, context) => readsPart(parent, part, context),
  attribution: (parent, part, context) => attributionPart(parent, part, context),
  effects: (parent, part) => effectsPart(parent, part),
  rescaling: (parent, part) => rescalingPart(parent, part),
};

function drawParts(parent, parts, context) {
  for (const part of parts) {
    KINDS[part.kind](make("div", { class: `part ${part.folded ? "folded" : part.kind}` }, parent), part, context);
  }
}

// All panels one below another, for the page.
export function panelSections(parent, about, current, model, ask) {
  const drawn = {};
  for (const panel of about.panels) {
    const section = make("section", { class: "panel", id: panel.name }, parent);
    make("h2", {}, section, panel.title);
    if (panel.about) make("p", { class: "about" }, section, panel.about);
    drawn[panel.name] = make("div", { class: "parts" }, section);
    drawParts(drawn[panel.name], panel.name === "allocation" ? current.allocation : panel.parts, { about, model, ask });
  }
  return (now) => { // the one that follows the state
    drawn.allocation?.replaceChildren();
    if (drawn.allocation) drawParts(drawn.allocation, now.allocation, { about, model });
  };
}

// One panel at a time behind tabs, for the widget; a second click on a tab closes it.
export function panelTabs(parent, about, model, ask) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, parent),
    box = make("div", { class: "panel" }, parent);
  const open = (name) => {
    model.set("panel", name);
    model.save_changes();
    draw();
  };
  about.panels.forEach((panel) => {
    const button = describe(
      make("button", { type: "button", role: "tab", "data-panel": panel.name }, list, panel.title),
      panel.about.split(/(?<=\.) /)[0],
    );
    button.addEventListener("click", () => open(model.get("panel") === panel.name ? "" : panel.name));
  });
  onArrows(list, (target) => open(target.dataset.panel));
  function draw() {
    const name = model.get("panel"), panel = about.panels.find((one) => one.name === name);
    for (const button of list.children) {
      button.setAttribute("aria-selected", button.dataset.panel === name);
      button.setAttribute("tabindex", button.dataset.panel === (panel ? name : about.panels[0].name) ? 0 : -1);
    }
    box.replaceChildren();
    if (!panel) return;
    if (panel.about) make("p", { class: "about" }, box, panel.about);
    drawParts(
      make("div", { class: "parts" }, box),
      name === "allocation" ? model.get("current").allocation ?? [] : panel.parts,
      { about, model, ask },
    );
  }
  model.on("change:panel", draw);
  model.on("change:compared", draw);
  draw();
  return () => {
    if (model.get("panel") === "allocation") draw();
  };
}
