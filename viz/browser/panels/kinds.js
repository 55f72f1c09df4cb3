// The kinds of parts that panels are made of, each with what draws it, and what a page answers in place of a kernel.

import { chart } from "../chart.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { alignmentPart } from "./alignment.js";
import { attributionPart } from "./attribution/attribution.js";
import { effectsPart } from "./effects.js";
import { readsAnswers, readsPart } from "./reads.js";
import { rescalingPart } from "./rescaling.js";

/** @type {Record<string, (parent: Element, part: any, context: any) => void>} */
export const KINDS = {
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

/**
 * By the name of a request, the values that it sets: of its arguments and of what the page was written with.
 *
 * @type {Record<string, (args: any, page: any) => Record<string, any>>}
 */
export const ANSWERS = { ...readsAnswers };

function drawCode(parent, { caption, code }) {
  make("div", { class: "key" }, parent, caption);
  make("pre", { tabindex: 0, role: "region", "aria-label": caption }, parent, code);
}

function drawChart(parent, part) {
  const y = part.y.percent ? { min: 0, max: 1, ...part.y } : part.y;
  chart(parent, { ...part, title: part.caption, width: 560, height: 220, y });
}
