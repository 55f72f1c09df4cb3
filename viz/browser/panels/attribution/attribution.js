// The panel "Attribution": an answer by what each token gained, the modules by what they contributed, and what leaving
// them out costs: as stored, and if there is a kernel for whatever is switched off or cut to a lower rank.

import { fillOptions, group, labeled } from "../../controls.js";
import { make, put } from "../../elements.js";
import { drawRequestForm } from "../explaining.js";
import { followKernel } from "../follow_kernel.js";
import { answerElements, drawAnswer, MEASURES, paintAnswer, press, writeAnswers } from "./answer.js";
import { conclude } from "./conclusion.js";
import { answerNow, changedModules, nameOf, switchKey } from "./contributions.js";
import { drawMap, followKeys, followPointer, paintMap } from "./map.js";

/** @import { Bar, Cell } from "../../grid.js" */
/** @import { Option } from "../../controls.js" */
/** @import { Ask, Model } from "../../traits.js" */
/** @import { Context } from "../panels.js" */
/** @import { Part, Sample, State } from "./contributions.js" */

const PAUSE = 400; // milliseconds before the answer is written again
const MEANINGS = ["log p: ends at 0", "log p \u2212 log(1 \u2212 p): has no ceiling"];
const ALL = 'tlora.attribute(..., switch_off=["modules", "layers", "projections"]) measures all of them.';

/**
 * The panel while it is drawn: the map's cells with their titles, a module whose rank is dragged, and what was refused.
 * `paint` draws all of it again; `turn` switches modules off and on, or cuts them to a rank.
 *
 * @typedef {State & {model: Model | null, ask: Ask | null, root: HTMLElement, cells: Cell[], bars: Bar[],
 *   titles: Element[], focus: number, drag: Drag | null, timer?: ReturnType<typeof setTimeout>, refused: string,
 *   paint: () => void, turn: (modules: number[], rank?: number | null) => void, regenerate: () => void,
 *   switchAllOn: () => void}} Panel
 */

/** @typedef {{k: number, y: number, rank: number, isMoved: boolean}} Drag */
/** @typedef {ReturnType<typeof drawFrame>} Frame */

/** @type {(parent: Element, part: Part, context: Pick<Context, "model" | "ask">) => void} */
export function attributionPart(parent, part, { model, ask }) {
  const choice = (part.choice ??= { sample: 0, token: null, measure: 0, ranks: {} });
  const known = (part.known ??= {}), sample = part.samples[choice.sample];
  const root = make("div", { class: "attribution" }, parent), drawn = { root, cells: [], bars: [], titles: [] };
  /** @type {Panel} */
  const panel = {
    ...{ part, model, ask, choice, known, sample, focus: 0, drag: null, refused: "" },
    ...drawn,
    paint: () => paint(panel, frame),
    turn: (modules, rank = null) => turn(panel, modules, rank),
    regenerate: () => regenerate(panel),
    switchAllOn() {
      choice.ranks = {};
      change(panel);
    },
  };
  const frame = drawFrame(panel);
  if (model && part.live) frame.followForm = drawRequestForm(root, model, ask);
  followPointer(panel, frame.svg);
  followKeys(panel, frame.svg);
  if (model) followModel(panel, frame, model);
  drawMap(panel, frame.svg);
  drawSample(panel, frame);
}

/**
 * What is always there; what is written is below the map, which a click must not move.
 *
 * @param {Panel} panel
 */
function drawFrame(panel) {
  const { root, choice } = panel, bar = make("div", { class: "bar" }, root);
  const select = make("select", { class: "sample" }, labeled(bar, "Answer")), box = group(bar, "Measure");
  select.addEventListener("change", () => {
    Object.assign(choice, { sample: Number(select.value), token: null });
    drawSample(panel, frame);
  });
  const measures = MEASURES.map((name, measure) =>
    press(box, name, MEANINGS[measure], () => {
      choice.measure = measure;
      panel.paint();
    })
  );
  const reset = press(bar, "Switch all on", "The adapter as trained (Escape)", () => panel.switchAllOn());
  const answer = answerElements(root), svg = make("svg", { class: "chart" }, make("div", { class: "scroll" }, root));
  const legend = make("div", { class: "legend" }, root);
  const finding = make("p", { class: "finding", role: "status" }, root);
  const written = make("div", { class: "written" }, root);
  const frame = { select, measures, reset, answer, svg, legend, finding, written, followForm: () => {} };
  return frame;
}

/**
 * The samples that are stored, and the reader's own.
 *
 * @type {(panel: Pick<Panel, "part" | "model">) => Sample[]}
 */
const samplesOf = ({ part, model }) => [...part.samples, ...(model?.get("explained")?.samples ?? [])];

/** @type {(panel: Panel, frame: Frame) => void} */
function drawSample(panel, { select, answer }) {
  const samples = samplesOf(panel), { choice } = panel;
  choice.sample = Math.min(choice.sample, samples.length - 1);
  panel.sample = samples[choice.sample];
  /** @type {Option[]} */
  const options = samples.map(({ prompt }, n) => [n, `${n + 1}: ${prompt.slice(-60)}`]);
  fillOptions(select, options, choice.sample);
  drawAnswer(answer, panel);
  change(panel);
}

/**
 * The sample or what is switched off has changed.
 *
 * @type {(panel: Panel) => void}
 */
function change(panel) {
  const { part, choice, ask } = panel, modules = changedModules(panel);
  clearTimeout(panel.timer);
  panel.refused = "";
  panel.paint();
  if (modules.length && !answerNow(panel, switchKey(panel)) && part.live) {
    ask?.("switch", { sample: choice.sample, ranks: modules.map((k) => [k, choice.ranks[k]]) }, "switch");
  } else regenerate(panel);
}

/**
 * Asks for the greedy answer, when the reader rests; not again while it is being written.
 *
 * @type {(panel: Panel) => void}
 */
function regenerate(panel) {
  const { part, choice, ask, drag } = panel, key = switchKey(panel), now = answerNow(panel, key);
  if (!part.live || !now || now.bar || now.answer !== undefined || drag) return;
  panel.timer = setTimeout(() => {
    if (key !== switchKey(panel)) return;
    const ranks = changedModules(panel).map((k) => [k, choice.ranks[k]]);
    ask?.("regenerate", { sample: choice.sample, ranks }, "regenerate");
  }, PAUSE);
}

/** @type {(panel: Panel, frame: Frame) => void} */
function paint(panel, { measures, reset, answer, legend, finding, written }) {
  const isChanged = changedModules(panel).length > 0, now = isChanged ? answerNow(panel, switchKey(panel)) : null;
  measures.forEach((button, measure) => put(button, "aria-pressed", measure === panel.choice.measure));
  reset.disabled = !isChanged;
  paintAnswer(answer, panel, now);
  writeAnswers(written, panel, now);
  paintMap(panel, legend);
  finding.textContent = panel.refused || conclude(panel, now);
}

/**
 * Switches modules off, or on if all are off; or cuts them to a rank.
 *
 * @type {(panel: Panel, modules: number[], rank: number | null) => void}
 */
function turn(panel, modules, rank) {
  const { part, choice } = panel, before = choice.ranks, isOff = modules.every((k) => before[k] === 0);
  const ranks = { ...before };
  for (const k of modules) {
    const to = rank ?? (isOff ? part.ranks[k] : 0);
    if (to === part.ranks[k]) delete ranks[k];
    else ranks[k] = to;
  }
  const isKnown = () => !changedModules(panel).length || answerNow(panel, switchKey(panel));
  choice.ranks = ranks;
  if (part.live || isKnown()) return change(panel);
  choice.ranks = Object.fromEntries(modules.filter((k) => k in ranks).map((k) => [k, ranks[k]]));
  if (changedModules(panel).length && isKnown()) return change(panel); // without a kernel: alone, if that was measured
  choice.ranks = before;
  panel.refused = `What leaving out ${nameOf(part, modules)} costs was not measured: ${ALL}`;
  panel.paint();
}

/**
 * Has the panel follow the kernel until another panel is open.
 *
 * @type {(panel: Panel, frame: Frame, model: Model) => void}
 */
function followModel(panel, frame, model) {
  const { root, choice, known } = panel;
  function followSwitches() {
    const { sample, key, ...answer } = model.get("switched") ?? {}, name = `${sample} ${key}`;
    if (key !== undefined) known[name] = { ...known[name], ...answer };
    panel.paint();
    if (key === switchKey(panel) && sample === choice.sample) regenerate(panel);
  }
  function followAnswers() {
    Object.assign(choice, { sample: samplesOf(panel).length - 1, token: null, ranks: {} });
    drawSample(panel, frame);
  }
  followKernel(root, model, {
    "change:switched": followSwitches,
    "change:explained": followAnswers,
    "change:explaining": frame.followForm,
  });
}
