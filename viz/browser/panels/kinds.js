// The kinds of parts that panels are made of, each with what draws it, and what a page answers in place of a kernel.

import { chart } from "../chart.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { alignmentPart } from "./alignment.js";
import { answerTablePart } from "./answer_table/answer_table.js";
import { attributionPart } from "./attribution/attribution.js";
import { effectsPart } from "./effects.js";
import { readsAnswers, readsPart } from "./reads.js";
import { rescalingPart } from "./rescaling.js";

/** @import { Traits } from "../traits.js" */

/** @import { Axis, Line } from "../chart.js" */
/** @import { Data } from "../offline.js" */
/** @import { Context } from "./panels.js" */

/**
 * What draws a part, each of its own shape.
 *
 * @type {Record<string, (parent: Element, part: any, context: Context) => void>}
 */
export const KINDS = {
  text: (parent, part) => make("p", {}, parent, part.text),
  table: drawTable,
  code: drawCode,
  chart: drawChart,
  alignment: alignmentPart,
  reads: readsPart,
  answer_table: answerTablePart,
  attribution: attributionPart,
  effects: effectsPart,
  rescaling: rescalingPart,
};

/**
 * By the name of a request, the values that it sets: of its arguments and of what the page was written with.
 *
 * @type {Record<string, (args: any, page: Data) => Partial<Traits>>}
 */
export const ANSWERS = { ...readsAnswers };

/** @type {(parent: Element, part: {caption: string, code: string}) => void} */
function drawCode(parent, { caption, code }) {
  make("div", { class: "key" }, parent, caption);
  make("pre", { tabindex: 0, role: "region", "aria-label": caption }, parent, code);
}

/** @type {(parent: Element, part: {caption: string, lines: Line[], x: Axis, y: Axis}) => void} */
function drawChart(parent, part) {
  const y = part.y.percent ? { min: 0, max: 1, ...part.y } : part.y;
  chart(parent, { ...part, title: part.caption, width: 560, height: 220, y });
}
