// Beside the map and around it: the selected module, what the allocation gives, and what is saved of it.

import { button } from "../controls.js";
import { make } from "../elements.js";
import { moduleCharts } from "../module_charts.js";
import { placeOf } from "../modules.js";
import { downloadPng, downloadSvg } from "./picture.js";
import { changes, describeModule, headline, warning } from "./sentences.js";
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
 * Has the sentences follow the allocation: what it gives, what was refused or done, and what changed since it was kept.
 *
 * @type {(bench: Bench, places: {finding: Element, message: Element, foot: Element}) => () => void}
 */
export function sayAllocation(bench, { finding, message, foot }) {
  const moved = make("div", { class: "moved" }, foot), other = make("div", {}, foot);
  return () => {
    const { about, current } = bench;
    finding.textContent = headline(bench);
    message.textContent = current.message || warning(bench);
    message.classList.toggle("note", Boolean(current.note));
    moved.textContent = changes(bench);
    other.textContent = about.run && !isOfRun(bench) ? OTHER_RUN : "";
  };
}

/**
 * Draws what is saved and downloaded.
 *
 * @type {(bench: Bench, box: Element) => void}
 */
export function drawDownloads(bench, box) {
  const { about, page, requests } = bench, row = make("div", { class: "bar" }, box);
  button(row, "SVG", "Download the map as a vector picture", () => downloadSvg(bench));
  button(row, "PNG", "Download the map as a picture", () => downloadPng(bench));
  if (page) return;
  button(row, "Page", "Download a page that shows the map without a kernel", () => {
    requests.ask("page", { texts: about.texts && confirm(TEXTS_ASKED) });
  });
  button(row, `Save session, ${about.session}`, SAVED, () => requests.ask("save"));
}
