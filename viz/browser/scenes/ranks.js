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
  const training = player(bar, { advance, restart: () => begin(now().ranks) });
  const pair = make("div", { class: "pair" }, root), shape = { layers: networks.LAYERS, budget: networks.BUDGET };
  const bars = rankBars(make("div", {}, pair), shape, (ranks) => {
    training.stop();
    begin(ranks);
  });
  const losses = dragChart(make("div", { class: "grow" }, pair), () => {}), table = make("div", {}, root);
  /** @type {(ranks: number[]) => void} */
  function begin(ranks) {
    now().begin(ranks);
    redraw();
  }
  /** @type {(count: number) => boolean} */
  function advance(count) {
    const isLeft = now().advance(count);
    redraw();
    return isLeft;
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

/** A network with one task: the allocation that is tried, its training, and the tries before. */
export class Tries {
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
  }

  /**
   * Some steps more; a training that ends is a try. Returns whether steps are left.
   *
   * @type {(count: number) => boolean}
   */
  advance(count) {
    const left = networks.STEPS - (this.training.losses.length - 1);
    if (!left) this.begin(this.ranks);
    for (let n = 0; n < Math.min(count, left || networks.STEPS); n++) {
      this.training = networks.step(this.network, this.training);
    }
    if (this.training.losses.length <= networks.STEPS) return true;
    const ranks = this.ranks, loss = this.training.losses[networks.STEPS];
    if (!this.finished.some((tried) => String(tried.ranks) === String(ranks))) this.finished.push({ ranks, loss });
    return false;
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
  const { losses } = tries.training;
  const lines = rules.map(({ rule, name, color }) => ({ ...line(name, tries.byRule(rule).losses, color), dash: true }));
  picture.draw({
    title: "Loss of your allocation and of the rules, by step",
    lines: [...lines, line("yours", losses, OWN_COLOR)],
    x: { label: "step", min: 0, max: networks.STEPS },
    y: { label: "loss, share of the first", log: true, min: 0.01, max: 1 },
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
