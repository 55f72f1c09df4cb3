// The stages of the method: a rail of buttons, and what the view of each shows.

import { copyable } from "../controls.js";
import { make, put, write } from "../elements.js";
import { headline, rangeOf } from "./sentences.js";
import { isOffered, stageOf } from "./values.js";

/** @import { Stage } from "../traits.js" */
/** @import { Bench } from "./workbench.js" */

const RUNS = "Nothing to show here yet. This line of Python fills the view:";
const ALLOCATION = "allocation";

/**
 * Parts of the workbench by what they belong to: every view, the views of the map, and that of the allocation.
 *
 * @typedef {{rail: Element, finding: Element, missing: HTMLElement, body: Element, ofMap: HTMLElement[],
 *   ofAllocation: HTMLElement[]}} Places
 */

/**
 * Draws the rail; a click on a stage opens its view, with its first panel unless the map is what it shows.
 *
 * @param {Bench} bench
 * @param {Places} places
 * @returns {() => void} What has rail and view follow the stage and the allocation.
 */
export function drawStages(bench, { rail, finding, missing, body, ofMap, ofAllocation }) {
  const { about } = bench;
  const buttons = about.stages.map((stage, i) => drawButton(bench, rail, stage, i + 1));
  make("p", {}, missing, RUNS);
  const line = copyable(make("div", { class: "copied" }, missing));
  return () => {
    const shown = stageOf(bench), isEmpty = isNotRun(bench, shown), hasMap = shown.map && !isEmpty;
    about.stages.forEach((stage, i) => {
      put(buttons[i].button, "aria-current", stage === shown);
      followAllocation(bench, stage, buttons[i]);
    });
    write(finding, shown.name === ALLOCATION ? headline(bench) : shown.sentence);
    write(line, shown.code);
    missing.hidden = !isEmpty;
    body.classList.toggle("alone", !hasMap);
    for (const part of ofMap) part.hidden = !hasMap;
    for (const part of ofAllocation) part.hidden = shown.name !== ALLOCATION;
    bench.tablist.hidden = !hasMap || !about.tabs.some((tab) => isOffered(bench, tab));
  };
}

/** @typedef {{button: HTMLElement, number: Element, note: Element}} RailButton */

/** @type {(bench: Bench, rail: Element, stage: Stage, place: number) => RailButton} */
function drawButton({ about, model }, rail, { name, title, map }, place) {
  const button = make("button", { type: "button", "data-stage": name }, rail);
  make("span", {}, button, `${place} ${title}`);
  const number = make("b", {}, button), note = make("small", {}, button);
  button.addEventListener("click", () => {
    const first = map ? null : about.panels.find(({ stage }) => stage === name);
    model.set("panel", first?.name ?? "");
    model.set("stage", name);
    model.save_changes();
  });
  return { button, number, note };
}

/** @type {(bench: Bench, stage: Stage, drawn: RailButton) => void} */
function followAllocation(bench, stage, { number, note }) {
  const known = stage.name === ALLOCATION ? rangeOf(bench) : stage;
  write(number, known.number || "\u2013");
  write(note, known.note || (isNotRun(bench, stage) ? "not run" : ""));
}

/**
 * Whether nothing is known that the view of a stage could show, and a line of Python could change that.
 *
 * @type {(bench: Bench, stage: Stage) => boolean}
 */
const isNotRun = ({ about }, { name, code }) =>
  Boolean(code) && ![...about.panels, ...about.tabs].some(({ stage }) => stage === name);
