// The workbench in the browser: draws `about` (what stays) and `current` (the current allocation), and asks the kernel
// for everything else. The page without a kernel runs the same code on a model that computes its answers (offline.js).

import { fold } from "../controls.js";
import { download, make } from "../elements.js";
import { explainer } from "../explain.js";
import { guide } from "../guide.js";
import { panelFolds } from "../panels/panels.js";
import { racePanel } from "../race.js";
import { drawControls, drawTabs, markTab, offerTabs } from "./bar.js";
import { drawCard } from "./card.js";
import { drawDownloads, sayAllocation } from "./details.js";
import { followKeys, followPointer } from "./gestures.js";
import { layOut, paintMap } from "./map.js";
import { Requests } from "./requests.js";
import { drawStages } from "./stages.js";
import { currentTab } from "./values.js";

/** @import { Bar, Cell } from "../grid.js" */
/** @import { About, Ask, Content, Current, Model } from "../traits.js" */

const LEAD = "A LoRA adapter in six stages. A cell of the map is a linear layer with the rank that it gets. " +
  "Drag one up or down: the others share the rest.";

/**
 * A rank that is dragged: of module `k`, from height `y` and `rank`, and the `last` that was asked for.
 *
 * @typedef {{k: number, y: number, rank: number, last: number, gesture: string}} Drag
 */

/**
 * The workbench: its elements, what it shows, and how it is drawn again: `paint` the map too, `tell` the rest alone.
 *
 * @typedef {object} Bench
 * @property {Model} model
 * @property {HTMLElement} el
 * @property {About} about
 * @property {Current} current
 * @property {boolean} page Whether no kernel answers.
 * @property {HTMLElement} root
 * @property {HTMLElement} tablist
 * @property {SVGSVGElement} svg
 * @property {HTMLElement} legend
 * @property {HTMLElement} tip
 * @property {Cell[]} cells
 * @property {Bar[]} bars
 * @property {number} focus The module that has the focus.
 * @property {Drag | null} drag
 * @property {Requests} requests
 * @property {() => void} paint
 * @property {() => void} tell
 */

/**
 * Draws the workbench of a model.
 *
 * @param {{model: Model, el: HTMLElement}} widget
 * @returns {() => void} What has it stop following the model and the page.
 */
export function renderWorkbench({ model, el }) {
  const { bench, rail, finding, bar, message, missing, map, side, foot, train, body } = drawFrame(model, el);
  const { about, page, requests } = bench;
  /** @type {Ask} */
  const ask = (call, args, gesture) => requests.ask(call, args, gesture);
  /** @type {((current: Current) => void)[]} */
  const follow = [];
  bench.tell = () => follow.forEach((draw) => draw(bench.current));
  bench.paint = () => {
    if (bench.cells.length) paintMap(bench);
    markTab(bench);
    offerTabs(bench);
    bench.tell();
  };
  drawTabs(bench);
  follow.push(
    drawStages(bench, { rail, finding, missing, body, ofMap: [bar, map, side, foot], ofAllocation: [train] }),
    drawControls(bench, bar),
    sayAllocation(bench, message, foot),
    drawCard(bench, side),
  );
  if (!page) follow.push(racePanel(train, { about, model, ask, width: () => map.clientWidth || 400 }));
  model.on("msg:custom", (content) => receive(requests, content)); // before the panels ask for anything
  follow.push(panelFolds(make("div", { class: "panels" }, body), about, model, ask));
  followPointer(bench);
  followKeys(bench);
  followModel(bench);
  const stop = followPage(bench, map);
  bench.paint();
  requests.rest();
  return () => {
    stop();
    requests.stop();
  };
}

/**
 * The parts of the page that stay, and the state that they share.
 *
 * @param {Model} model
 * @param {HTMLElement} el
 */
function drawFrame(model, el) {
  const about = model.get("about"), page = Boolean(about.page);
  // Typing stays in here.
  const root = make("div", { class: "tlora", "data-lm-suppress-shortcuts": "true" }, el);
  const head = make("div", { class: "head" }, root), what = make("div", { class: "what" }, head);
  make("h1", {}, what, about.title);
  make("div", {}, what, LEAD);
  const rail = make("nav", { class: "rail", "aria-label": "Stages" }, root);
  const finding = make("div", { class: "finding" }, root), bar = make("div", { class: "bar" }, root);
  const message = make("div", { class: "message", role: "status" }, root);
  const missing = make("div", { class: "missing" }, root);
  const tablist = make("div", { class: "tabs", role: "tablist", "aria-label": "What the map shows" }, root);
  const body = make("div", { class: "body" }, root);
  const map = make("div", { class: "map", role: "tabpanel", "aria-label": "Map of the modules" }, body);
  const svg = make("svg", {}, map), legend = make("div", { class: "legend" }, map);
  const side = make("div", { class: "side" }, body), foot = make("div", { class: "foot" }, body);
  const train = make("div", { class: "race" }, body);
  const tip = make("div", { class: "tip", "aria-hidden": "true" }, root);
  explainer(root);
  const resamples = () => !page && Boolean(about.resamples) && !bench.current.is_captured;
  const requests = new Requests(model, resamples, () => bench.drag !== null);
  const current = model.get("current"), focus = model.get("selected").at(-1) ?? 0;
  const drawn = { root, tablist, svg, legend, tip, cells: [], bars: [] };
  /** @type {Bench} */
  const bench = { model, el, about, page, current, focus, ...drawn, drag: null, requests, paint() {}, tell() {} };
  drawDownloads(bench, fold(head, "Save and download"));
  guide(fold(head, "Help"), page);
  return { bench, rail, finding, bar, message, missing, map, side, foot, train, body };
}

/** @type {(requests: Requests, content: Content) => void} */
function receive(requests, content) {
  if ("answer" in content) requests.answered(Boolean(content.more));
  if (content.file) download(content.file, new Blob([content.text ?? ""], { type: "text/html" }));
}

/** @type {(bench: Bench) => void} */
function followModel(bench) {
  const { model, requests } = bench;
  model.on("change:current", () => {
    const { ranks } = bench.current;
    bench.current = model.get("current");
    bench.paint();
    if (ranks.some((rank, k) => rank !== bench.current.ranks[k])) requests.changed();
  });
  for (const trait of ["stage", "tab"]) model.on(`change:${trait}`, () => bench.paint());
  model.on("change:selected", () => {
    bench.focus = model.get("selected").at(-1) ?? bench.focus;
    bench.paint();
  });
  model.on("change:resampled", () => bench.tell());
  model.on("change:training", () => (currentTab(bench).trained ? bench.paint() : offerTabs(bench)));
}

/**
 * Lays the map out when it is on the page, and again when its width changes; colors follow the theme.
 *
 * @type {(bench: Bench, map: HTMLElement) => () => void}
 */
function followPage(bench, map) {
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (!map.clientWidth || map.clientWidth === width) return;
    width = map.clientWidth;
    layOut(bench, width);
    bench.paint();
  });
  const themed = new MutationObserver(() => bench.paint());
  resized.observe(map);
  themed.observe(document.body, { attributes: true });
  return () => {
    resized.disconnect();
    themed.disconnect();
  };
}
