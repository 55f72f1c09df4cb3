// Train both: two allocations trained on the same batches, the verdict, their curves and their answers.

import { lossCurves } from "./chart.js";
import { button, drawBar, labeled } from "./controls.js";
import { make, put } from "./elements.js";
import { describe, explained } from "./explain.js";
import { drawTable } from "./table.js";

/** @import { Attributes } from "./elements.js" */

/** @import { About, Arm, Ask, Current, Defaults, Entry, Model, Race, Training, Written } from "./traits.js" */

const SAVE = "Save the adapter with the lower held-out loss to the folder workbench-winner.";
const PAST = "The map shows other ranks than those that were trained:";

/**
 * Draws the panel, which then follows the training.
 *
 * @param {Element} parent
 * @param {{about: About, model: Model, ask: Ask, width: () => number}} context
 * @returns {(current: Pick<Current, "race">) => void} What has it follow the allocation.
 */
export function racePanel(parent, { about, model, ask, width }) {
  const panel = drawPanel(parent, about.training);
  /** @type {Race} */
  let race = { arms: [], obstacle: "", is_shown: false };
  const training = () => model.get("training") ?? {};
  const isRunning = () => Boolean(training().running);
  panel.begin.addEventListener("click", () => {
    const { steps, rate } = panel;
    if (race.obstacle || isRunning() || !steps.validity.valid || !rate.validity.valid) return;
    ask("train", {
      ...(steps.value && { steps: Number(steps.value) }),
      ...(rate.value && { learning_rate: Number(rate.value) }),
    });
  });
  panel.winner.addEventListener("click", () => ask("save_winner"));
  /** @type {(current: Pick<Current, "race">) => void} */
  function tell(current) {
    race = current.race ?? race;
    sayWhatIsShown(panel, race, training());
    sayPlan(panel, race, about.training);
    sayWhetherReady(panel, race, isRunning());
  }
  function follow() {
    sayWhatIsShown(panel, race, training());
    sayWhetherReady(panel, race, isRunning());
    followTraining(panel, training(), ask, width);
  }
  panel.root.addEventListener("input", () => tell({ race }));
  model.on("change:training", follow);
  follow();
  return tell;
}

/** @typedef {ReturnType<typeof drawPanel>} Drawn */

/**
 * @param {Element} parent
 * @param {Defaults} defaults
 */
function drawPanel(parent, defaults) {
  const root = make("div", { class: "train", role: "group", "aria-label": "Training of two allocations" }, parent);
  const other = make("div", { class: "other" }, root), verdict = make("div", { class: "status", role: "status" }, root);
  const basis = make("div", { class: "basis" }, root), head = make("div", { class: "bar" }, root);
  const begin = make("button", { type: "button", class: "primary" }, head, "Train both"),
    plan = make("span", { class: "plan" }, head);
  /** @type {(label: string, attributes: Attributes) => HTMLInputElement} */
  const field = (label, attributes) =>
    make("input", { type: "number", ...attributes }, explained(labeled(head, label), label));
  const steps = field("steps", { min: 1, step: 1, placeholder: "auto", value: defaults.steps ?? "" });
  const given = typeof defaults.learning_rate === "number" ? defaults.learning_rate : "";
  const rate = field("learning rate", { min: 0, step: "any", value: given });
  const stops = make("span", { class: "group" }, head);
  const winner = describe(make("button", { type: "button" }, head, "Save winner"), SAVE);
  const arms = make("div", { class: "arms" }, root), outcome = make("div", { class: "outcome" }, root);
  const curves = make("div", { class: "curves" }, outcome), answers = make("div", { class: "answers" }, outcome);
  return { root, other, verdict, basis, begin, plan, steps, rate, stops, winner, arms, curves, answers };
}

/**
 * Says so if the map no longer shows the allocations that were trained, which the verdict is about.
 *
 * @type {(panel: Drawn, race: Race, training: Training) => void}
 */
function sayWhatIsShown({ root, other }, race, training) {
  const isPast = Object.keys(training.arms ?? {}).length > 0 && !race.is_shown;
  root.classList.toggle("past", isPast);
  other.textContent = isPast ? PAST : "";
}

/** @type {(panel: Drawn, race: Race, defaults: Defaults) => void} */
function sayPlan({ steps, rate, plan }, { obstacle, arms }, { learning_rate, steps: planned, seconds }) {
  for (const input of [steps, rate]) {
    if (input.parentElement) input.parentElement.hidden = !learning_rate && !planned && !seconds;
  }
  const length = steps.value || !seconds
    ? "on the same batches"
    : `as many steps as fit into about ${Math.round(seconds / 60)} minutes`;
  plan.textContent = obstacle || `${arms.join(" and ")}, ${length}`;
}

/**
 * Says whether it can begin, and if not why: a disabled button would not be found by key.
 *
 * @type {(panel: Drawn, race: Race, isRunning: boolean) => void}
 */
function sayWhetherReady({ begin }, { obstacle, arms }, isRunning) {
  put(begin, "aria-disabled", Boolean(obstacle) || isRunning);
  const does = `Train ${arms.join(" and ")} on the same batches, and say which is better on held-out samples.`;
  describe(begin, obstacle || does);
}

/** @type {(panel: Drawn, training: Training, ask: Ask, width: () => number) => void} */
function followTraining(panel, training, ask, width) {
  const { arms = {} } = training, names = Object.keys(arms);
  panel.winner.hidden = !training.winner;
  panel.verdict.textContent = training.said ?? "";
  panel.basis.textContent = training.basis ?? "";
  drawStops(panel.stops, training, ask);
  panel.arms.replaceChildren();
  const { words, done = 0, total = null } = training.bar ?? {};
  if (training.running && words) drawBar(make("div", {}, panel.arms), { words, done, total });
  names.forEach((name, i) => drawArm(panel.arms, name, i, arms[name]));
  panel.curves.replaceChildren();
  if (names.some((name) => arms[name].losses.length)) {
    lossCurves(panel.curves, arms, Math.max(280, Math.min(430, width())));
  }
  panel.answers.replaceChildren();
  if (training.answers?.length) drawAnswers(panel.answers, training.answers, names);
}

/**
 * One button an arm while they train; a button stays the same, so that it keeps the focus.
 *
 * @type {(stops: Element, training: Training, ask: Ask) => void}
 */
function drawStops(stops, { arms = {}, running }, ask) {
  const names = running ? Object.keys(arms) : [], drawn = () => [...stops.querySelectorAll("button")];
  if (drawn().map((stop) => stop.dataset.arm).join() !== names.join()) {
    stops.replaceChildren();
    for (const name of names) {
      const does = `End the training of ${name} after this step; the other goes on.`;
      button(stops, `Stop ${name}`, does, () => ask("stop", { name }), { "data-arm": name });
    }
  }
  for (const stop of drawn()) {
    const arm = arms[stop.dataset.arm ?? ""];
    stop.disabled = !arm.running || Boolean(arm.stopped);
  }
}

/** @type {(parent: Element, name: string, i: number, arm: Arm) => void} */
function drawArm(parent, name, i, arm) {
  const row = make("div", { class: `arm arm${i}`, "data-arm": name }, parent);
  const parameters = `${arm.parameters.toLocaleString("en-US")} trained parameters`;
  make("div", { class: "ranks" }, row, `${name}: ${arm.ranks}; ${parameters}`);
  if (!arm.planned) return;
  make("progress", { max: arm.planned, value: arm.step, "aria-label": `training of ${name}` }, row);
  const loss = arm.losses.at(-1)?.[1], held = arm.held.at(-1)?.[1];
  const said = [`step ${arm.step} of ${arm.planned}`];
  if (loss !== undefined) said.push(`training loss ${loss.toPrecision(3)}`);
  if (held !== undefined) said.push(`held-out loss ${held.toPrecision(4)}`);
  if (arm.stopped) said.push("stopped");
  row.append(said.join(", "));
}

/**
 * Held-out requests, their right answers, and what each adapter wrote; right ones are marked.
 *
 * @type {(parent: Element, entries: Entry[], names: string[]) => void}
 */
export function drawAnswers(parent, entries, names) {
  const arms = names.filter((name) => name in entries[0].by);
  const counted = arms.filter((name) => entries[0].by[name].right !== null).map((name) => {
    const right = entries.filter((entry) => entry.by[name].right).length;
    return `${name} ${right} of ${entries.length} right`;
  });
  /** @type {(written: Written) => string} */
  const mark = ({ text, right }) => `${right === null ? "" : right ? "\u2713 " : "\u2717 "}${text}`;
  drawTable(parent, {
    caption: `Answers to held-out requests${counted.length ? `: ${counted.join(", ")}` : ""}`,
    head: ["request", "right answer", ...arms],
    rows: entries.map((entry) => [entry.request, entry.right, ...arms.map((name) => mark(entry.by[name]))]),
    text: [0, 1, 2, 3],
  });
}
