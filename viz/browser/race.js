// Train both: two allocations side by side, the race between them, its verdict and its answers, and all races so far.

import { button, labeled } from "./controls.js";
import { make, put, write } from "./elements.js";
import { describe, explained } from "./explain.js";
import { drawArms, drawProgress } from "./race_arms.js";
import { drawRaces } from "./race_list.js";
import { drawTable } from "./table.js";

/** @import { Attributes } from "./elements.js" */
/** @import { About, Ask, Comparison, Current, Defaults, Entry, Model, Race, Training, Written } from "./traits.js" */

const SAVE = "Save the adapter with the lower held-out loss to the folder workbench-winner.";
const PAST = "The map shows other ranks than those that were trained.";
const COMPARE = "Compare the kept allocation with that of the map.";

/**
 * Draws the panel, which then follows the training. It compares what the map shows, with the verdict if just that was
 * raced; of a race that ends while the map has moved on, or that is chosen from the list, it shows the race instead,
 * until the map changes.
 *
 * @param {Element} parent
 * @param {{about: About, model: Model, ask: Ask, width: () => number}} context
 * @returns {(current: Pick<Current, "race">) => void} What has it follow the allocation.
 */
export function racePanel(parent, { about, model, ask, width }) {
  const panel = drawPanel(parent, about.training);
  /** @type {Race} */
  let race = { arms: {}, difference: "", obstacle: "", raced: null, is_live: false };
  /** @type {number | null} */
  let chosen = null;
  const training = () => model.get("training") ?? {}, races = () => model.get("races") ?? [];
  const isRunning = () => Boolean(training().running);
  /** @type {(number: number | null) => void} */
  function choose(number) {
    chosen = number;
    draw();
  }
  panel.begin.addEventListener("click", () => {
    const { steps, rate } = panel;
    if (race.obstacle || isRunning() || !steps.validity.valid || !rate.validity.valid) return;
    ask("train", {
      ...(steps.value && { steps: Number(steps.value) }),
      ...(rate.value && { learning_rate: Number(rate.value) }),
    });
  });
  panel.winner.addEventListener("click", () => ask("save_winner"));
  panel.compare.addEventListener("click", () => choose(null));
  function draw() {
    const number = chosen ?? race.raced, live = training(), isLive = number !== null && live.number === number;
    const isOfMap = number === race.raced || (isLive && race.is_live);
    /** @type {Training} */
    const shown = number === null ? race : isLive ? live : races()[number];
    sayWhetherPast(panel, isOfMap, isRunning());
    sayPlan(panel, race, about.training);
    sayWhetherReady(panel, race, isRunning());
    write(panel.verdict, shown.said ?? "");
    write(panel.lead, shown.said ? "" : shown.difference ?? "");
    write(panel.basis, shown.basis ?? "");
    panel.winner.hidden = !live.winner || !isLive;
    drawStops(panel.stops, live, ask);
    drawArms(panel.arms, { arms: {}, difference: "", ...shown }, about, width());
    drawProgress(panel.arms, shown, width());
    panel.answers.replaceChildren();
    if (shown.answers?.length) drawAnswers(panel.answers, shown.answers, Object.keys(shown.arms ?? {}));
    drawRaces(panel.races, races(), number, choose);
  }
  /** @type {(current: Pick<Current, "race">) => void} */
  function tell(current) {
    const before = codes(race);
    race = current.race ?? race;
    if (!isRunning() && codes(race) !== before) chosen = null;
    draw();
  }
  function follow() {
    if (isRunning()) chosen = training().number ?? null;
    draw();
  }
  panel.root.addEventListener("input", draw);
  model.on("change:training", follow);
  model.on("change:races", draw);
  follow();
  return tell;
}

/** @type {(race: Race) => string} */
const codes = ({ arms }) => JSON.stringify(Object.entries(arms).map(([name, { code }]) => [name, code]));

/** @typedef {ReturnType<typeof drawPanel>} Drawn */

/**
 * @param {Element} parent
 * @param {Defaults} defaults
 */
function drawPanel(parent, defaults) {
  const root = make("div", { class: "train", role: "group", "aria-label": "Comparison of two allocations" }, parent);
  const lead = make("div", { class: "lead" }, root), verdict = make("div", { class: "status", role: "status" }, root);
  const basis = make("div", { class: "basis" }, root);
  const other = make("div", { class: "other" }, root, PAST);
  const compare = describe(make("button", { type: "button" }, other, "Compare what it shows"), COMPARE);
  const head = make("div", { class: "bar" }, root);
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
  const arms = make("div", { class: "arms" }, root), answers = make("div", { class: "answers" }, root);
  const races = make("div", {}, root);
  return { root, other, compare, lead, verdict, basis, begin, plan, steps, rate, stops, winner, arms, answers, races };
}

/**
 * Says so if the map no longer shows the allocations that were trained, which the verdict is about.
 *
 * @type {(panel: Drawn, isOfMap: boolean, isRunning: boolean) => void}
 */
function sayWhetherPast({ root, other, compare }, isOfMap, isRunning) {
  root.classList.toggle("past", !isOfMap);
  other.hidden = isOfMap;
  compare.hidden = isRunning;
}

/** @type {(panel: Drawn, race: Race, defaults: Defaults) => void} */
function sayPlan({ steps, rate, plan }, { obstacle, arms }, { learning_rate, steps: planned, seconds }) {
  for (const input of [steps, rate]) {
    if (input.parentElement) input.parentElement.hidden = !learning_rate && !planned && !seconds;
  }
  const length = steps.value || !seconds
    ? "on the same batches"
    : `as many steps as fit into about ${Math.round(seconds / 60)} minutes`;
  write(plan, obstacle || `${Object.keys(arms).join(" and ")}, ${length}`);
}

/**
 * Says whether it can begin, and if not why: a disabled button would not be found by key.
 *
 * @type {(panel: Drawn, race: Race, isRunning: boolean) => void}
 */
function sayWhetherReady({ begin }, { obstacle, arms }, isRunning) {
  put(begin, "aria-disabled", Boolean(obstacle) || isRunning);
  const names = Object.keys(arms).join(" and ");
  describe(begin, obstacle || `Train ${names} on the same batches, and say which is better on held-out samples.`);
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
