// Beside the map and below it: the selected module, what the allocation costs, its line of Python, and downloads.

import { button, copyable } from "../controls.js";
import { make } from "../elements.js";
import { moduleCharts } from "../module_charts.js";
import { placeOf } from "../modules.js";
import { fillTable } from "../table.js";
import { downloadPng, downloadSvg } from "./picture.js";
import { changes, costs, describeModule, headline, warning } from "./sentences.js";
import { isOfRun } from "./values.js";

/** @import { Bench } from "./workbench.js" */

const OTHER_RUN = "The run was trained with other ranks than these: " +
  "what it used of them is in the panels Training and Rank use, not on the map.";
const TEXTS_ASKED = "Include the panels with the text of samples in the page?";
const SAVED = "Write the results and the allocation to the folder workbench-session; covariances are not in it";

/**
 * Draws what is said of the selected module.
 *
 * @param {Bench} bench
 * @param {HTMLElement} side
 * @returns {() => void} What has it follow the selection and the allocation.
 */
export function drawSelected(bench, side) {
  const { about, model } = bench, said = make("div", { class: "said", "aria-live": "polite" }, side);
  const charts = moduleCharts(about);
  side.appendChild(charts.root);
  return () => {
    const selected = model.get("selected"), k = selected.at(-1), rest = selected.length - 1;
    said.replaceChildren();
    if (k === undefined) return;
    const place = placeOf(about, k);
    make("h2", {}, said, place + (rest ? `, and ${rest} more selected` : ""));
    make("div", { class: "name" }, said, about.names[k]);
    describeModule(bench, k).forEach((line, i) => make("div", i ? {} : { class: "why" }, said, line));
    charts.draw({ k, place, rank: bench.current.ranks[k], counts: model.get("resampled")?.[k] });
  };
}

/**
 * Draws what is said of the allocation.
 *
 * @param {Bench} bench
 * @param {HTMLElement} foot
 * @param {HTMLElement} message
 * @returns {() => void} What has it follow the allocation.
 */
export function drawAllocation(bench, foot, message) {
  const finding = make("div", { class: "finding" }, foot), line = copyable(make("div", { class: "copied" }, foot));
  const downloads = make("span", { class: "group" }, foot), table = make("table", {}, foot);
  const moved = make("div", { class: "moved" }, foot);
  drawDownloads(bench, downloads);
  return () => {
    const { about, current } = bench;
    message.textContent = current.message || warning(bench);
    message.classList.toggle("note", Boolean(current.note));
    finding.textContent = headline(bench);
    table.replaceChildren();
    const head = ["", "kept", "new", "new, of kept", `LoRA, rank ${current.rank}`];
    fillTable(table, { head, rows: costs(bench), term: (name) => name.replace(/^LoRA.*/, "lora") });
    moved.textContent = `Since it was kept: ${changes(bench)}.`;
    if (about.run && !isOfRun(bench)) make("div", {}, moved, OTHER_RUN);
    line.textContent = current.code;
  };
}

/** @type {(bench: Bench, parent: Element) => void} */
function drawDownloads(bench, parent) {
  const { about, page, requests } = bench;
  button(parent, "SVG", "Download the map as a vector picture", () => downloadSvg(bench));
  button(parent, "PNG", "Download the map as a picture", () => downloadPng(bench));
  if (page) return;
  button(parent, "Page", "Download a page that shows the map without a kernel", () => {
    requests.ask("page", { texts: about.texts && confirm(TEXTS_ASKED) });
  });
  button(parent, `Save session, ${about.session}`, SAVED, () => requests.ask("save"));
}
