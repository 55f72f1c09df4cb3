// Around the map: what was done, on a page what changed, and what is saved of it.

import { button } from "../controls.js";
import { make } from "../elements.js";
import { downloadPng, downloadSvg } from "./picture.js";
import { changes, warning } from "./sentences.js";
import { isOfRun } from "./values.js";

/** @import { Bench } from "./workbench.js" */

const OTHER_RUN = "The run was trained with other ranks than these: " +
  "what it used of them is in the panels Training and Rank use, not on the map.";
const TEXTS_ASKED = "Include the panels with the text of samples in the page?";
const SAVED = "Write the results and the allocation to the folder workbench-session; covariances are not in it";

/**
 * Has the sentences follow the allocation: what was refused or done, and on a page what changed since it was kept; with
 * a kernel the comparison says that.
 *
 * @type {(bench: Bench, message: Element, foot: Element) => () => void}
 */
export function sayAllocation(bench, message, foot) {
  const moved = make("div", { class: "moved" }, foot), other = make("div", {}, foot);
  return () => {
    const { about, current, page } = bench;
    message.textContent = current.message || warning(bench);
    message.classList.toggle("note", Boolean(current.note));
    moved.textContent = page ? changes(bench) : "";
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
