// Scene 3: where the rank should go. Eight ranks to hand out to four layers, and what training makes of them.

import { choose } from "../controls.js";
import { make } from "../elements.js";
import { drawTable } from "../table.js";
import { lossText } from "../text.js";
import { dragChart } from "./drag_chart.js";
import * as networks from "./network.js";
import { player } from "./player.js";
import { rankBars } from "./rank_bars.js";
import { HARD_FROM, ranksSteps, RULES, TASK_NAMES, TRIED } from "./ranks_steps.js";
import { slider } from "./slider.js";

/** @import { Line } from "../chart.js" */
/** @import { DragChart } from "./drag_chart.js" */
/** @import { Network, Rule } from "./network.js" */
/** @import { ShownRule } from "./ranks_steps.js" */
/** @import { Scene } from "./story.js" */

const SCORES_FROM = 2; // step of the story
const OWN_COLOR = 0;

/** @typedef {{task: string, story: number}} State The task that is shown, and the step of the text. */
/** @typedef {{ranks: number[], loss: number}} Try Ranks and the last loss. */
/** @typedef {Try & {losses: number[]}} Trained A try with the losses of all its steps. */
/** @typedef {Record<string, Tries>} Tasks The tries of each task, `large` and `small`. */

/**
 * The scene.
 *
 * @param {Element} parent Where its picture goes.
 * @param {number} seed
 * @returns {Scene}
 */
export function ranksScene(parent, seed) {
  const tasks = triesOf(seed);
  /** @type {State} */
  const state = { task: "large", story: 0 }, now = () => tasks[state.task];
  const root = make("div", { class: "picture" }, parent), bar = make("div", { class: "bar" }, root);
  const select = choose(bar, "Task", TASK_NAMES, state.task, (task) => change({ task }));
  const training = player(bar, { advance, restart: () => move(0) });
  const step = slider(bar, "Step", { min: 0, max: networks.STEPS, step: 1 }, (value) => move(value));
  const pair = make("div", { class: "pair" }, root), shape = { layers: networks.LAYERS, budget: networks.BUDGET };
  const bars = rankBars(make("div", {}, pair), shape, (ranks) => {
    training.stop();
    begin(ranks);
  });
  const losses = dragChart(make("div", { class: "grow" }, pair), (value) => move(Math.round(value)));
  const table = make("div", {}, root);
  /** @type {(ranks: number[]) => void} */
  function begin(ranks) {
    now().begin(ranks);
    redraw();
  }
  /** @type {(at: number) => void} */
  function move(at) {
    training.stop();
    now().move(at);
    redraw();
  }
  /** @type {(count: number) => boolean} */
  function advance(count) {
    const { at } = now();
    now().move(at === networks.STEPS ? count : at + count); // from the start again after the last step
    redraw();
    return now().at < networks.STEPS;
  }
  /** @type {(values: Partial<State>) => void} */
  function change(values) {
    training.stop();
    Object.assign(state, values);
    select.value = state.task;
    redraw();
  }
  function redraw() {
    const tries = now(), { scores } = tries.network;
    const notes = scores.map((score) => (state.story < SCORES_FROM ? "" : `score ${(1000 * score).toFixed(0)}`));
    bars.draw(tries.ranks, notes);
    step.set(tries.at);
    drawLosses(losses, tries, rulesOf(state));
    drawTries(table, tries, rulesOf(state));
  }
  /** @type {(story: number) => void} */
  function show(story) {
    select.parentElement?.toggleAttribute("hidden", story < HARD_FROM);
    const isNew = story >= HARD_FROM && state.story < HARD_FROM;
    change({ story, task: story < HARD_FROM ? "large" : isNew ? "small" : state.task });
  }
  return { steps: ranksSteps(tasks), show, stop: training.stop };
}

/**
 * The tries of each task, none begun.
 *
 * @type {(seed: number) => Tasks}
 */
export const triesOf = (seed) => ({ large: new Tries(seed, "large"), small: new Tries(seed, "small") });

/** @type {(state: State) => ShownRule[]} */
const rulesOf = ({ story }) => RULES.filter(({ from }) => story >= from);

/** A network with one task: the allocation that is tried, its training and the step that is shown, the tries before. */
export class Tries {
  at = 0;
  /** @type {number[]} */
  ranks = Array(networks.LAYERS).fill(0);
  /** @type {Try[]} */
  finished = [];
  /** @type {Partial<Record<Rule, Trained>>} */
  rules = {};

  /**
   * @param {number} seed
   * @param {string} task
   */
  constructor(seed, task) {
    /** @type {Network} */
    this.network = networks.makeNetwork(seed, networks.TASKS[task]);
    this.training = networks.begin(this.network, this.ranks);
  }

  /** @type {(ranks: number[]) => void} */
  begin(ranks) {
    this.ranks = ranks;
    this.training = networks.begin(this.network, ranks);
    this.at = 0;
  }

  /**
   * Shows a step, and trains up to it; a training that ends is a try.
   *
   * @type {(at: number) => void}
   */
  move(at) {
    this.at = Math.min(at, networks.STEPS);
    while (this.training.losses.length <= this.at) this.training = networks.step(this.network, this.training);
    if (this.at < networks.STEPS) return;
    const ranks = this.ranks, loss = this.training.losses[networks.STEPS];
    if (!this.finished.some((tried) => String(tried.ranks) === String(ranks))) this.finished.push({ ranks, loss });
  }

  /**
   * The ranks by a rule, and the losses of training with them.
   *
   * @type {(rule: Rule) => Trained}
   */
  byRule(rule) {
    return (this.rules[rule] ??= this.trained(networks.ranksBy(rule, this.network)));
  }

  /** @type {(ranks: number[]) => Trained} */
  trained(ranks) {
    let training = networks.begin(this.network, ranks);
    for (let n = 0; n < networks.STEPS; n++) training = networks.step(this.network, training);
    return { ranks, losses: training.losses, loss: training.losses[networks.STEPS] };
  }
}

/** @type {(picture: DragChart, tries: Tries, rules: ShownRule[]) => void} */
function drawLosses(picture, tries, rules) {
  /** @type {(label: string, losses: number[], color: number) => Line} */
  const line = (label, losses, color) => ({ label, term: "", points: losses.map((loss, n) => [n, loss]), color });
  const losses = tries.training.losses.slice(0, tries.at + 1);
  const lines = rules.map(({ rule, name, color }) => ({ ...line(name, tries.byRule(rule).losses, color), dash: true }));
  picture.draw({
    title: "Loss of your allocation and of the rules, by step",
    lines: [...lines, line("yours", losses, OWN_COLOR)],
    x: { label: "step", min: 0, max: networks.STEPS },
    y: { label: "loss, share of the first", log: true, min: 0.01, max: 1 },
    cursor: tries.at,
    height: 220,
  });
}

/**
 * The tries of the class, the lowest loss first, among the rules.
 *
 * @type {(root: Element, tries: Tries, rules: ShownRule[]) => void}
 */
function drawTries(root, tries, rules) {
  root.replaceChildren();
  const byRule = rules.map(({ rule, name }) => {
    const { ranks, loss } = tries.byRule(rule);
    return { name, ranks, loss };
  });
  const own = tries.finished.map((tried, i) => ({ name: `try ${i + 1}`, ...tried }));
  const rows = [...own, ...byRule].sort((a, b) => a.loss - b.loss).slice(0, TRIED);
  if (!rows.length) return;
  const layers = tries.ranks.map((_, l) => `layer ${l + 1}`);
  drawTable(root, {
    caption: `Loss after ${networks.STEPS} steps, the lowest first`,
    head: ["", ...layers, "loss left"],
    rows: rows.map(({ name, ranks, loss }) => [name, ...ranks, lossText(loss)]),
  });
}
