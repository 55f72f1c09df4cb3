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

const SCORES_FROM = 2; // step of the story
const OWN_COLOR = 0;

/**
 * The scene.
 *
 * @param {Element} parent Where its picture goes.
 * @param {number} seed
 * @returns {import("./story.js").Scene}
 */
export function ranksScene(parent, seed) {
  const tasks = { large: new Tries(seed, "large"), small: new Tries(seed, "small") };
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
  function begin(ranks) {
    now().begin(ranks);
    redraw();
  }
  function advance(count) {
    const isLeft = now().advance(count);
    redraw();
    return isLeft;
  }
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
  function show(story) {
    select.parentElement.hidden = story < HARD_FROM;
    const isNew = story >= HARD_FROM && state.story < HARD_FROM;
    change({ story, task: story < HARD_FROM ? "large" : isNew ? "small" : state.task });
  }
  return { steps: ranksSteps(tasks), show, stop: training.stop };
}

const rulesOf = ({ story }) => RULES.filter(({ from }) => story >= from);

/** A network with one task: the allocation that is tried, its training, and the tries before. */
export class Tries {
  ranks = Array(networks.LAYERS).fill(0);
  /** @type {{ranks: number[], loss: number}[]} */
  finished = [];
  rules = {};

  constructor(seed, task) {
    this.network = networks.makeNetwork(seed, networks.TASKS[task]);
    this.begin(this.ranks);
  }

  begin(ranks) {
    this.ranks = ranks;
    this.training = networks.begin(this.network, ranks);
  }

  /** Some steps more; a training that ends is a try. Returns whether steps are left. */
  advance(count) {
    const left = networks.STEPS - (this.training.losses.length - 1);
    if (!left) this.begin(this.ranks);
    for (let n = 0; n < Math.min(count, left || networks.STEPS); n++) {
      this.training = networks.step(this.network, this.training);
    }
    if (this.training.losses.length <= networks.STEPS) return true;
    const ranks = this.ranks, loss = this.training.losses.at(-1);
    if (!this.finished.some((tried) => String(tried.ranks) === String(ranks))) this.finished.push({ ranks, loss });
    return false;
  }

  /** The ranks by a rule, and the losses of training with them. */
  byRule(rule) {
    return (this.rules[rule] ??= this.trained(networks.ranksBy(rule, this.network)));
  }

  trained(ranks) {
    let training = networks.begin(this.network, ranks);
    for (let n = 0; n < networks.STEPS; n++) training = networks.step(this.network, training);
    return { ranks, losses: training.losses };
  }
}

function drawLosses(picture, tries, rules) {
  const line = (label, losses, color) => ({ label, term: "", points: losses.map((loss, n) => [n, loss]), color });
  const { losses } = tries.training;
  const lines = rules.map(({ rule, name, color }) => ({ ...line(name, tries.byRule(rule).losses, color), dash: true }));
  picture.draw({
    title: "Loss of your allocation and of the rules, by step",
    lines: [...lines, line("yours", losses, OWN_COLOR)],
    x: { label: "step", min: 0, max: networks.STEPS },
    y: { label: "loss, share of the first", log: true, min: 0.03, max: 1 },
    height: 220,
  });
}

/** The tries of the class, the lowest loss first, among the rules. */
function drawTries(root, tries, rules) {
  root.replaceChildren();
  const byRule = rules.map(({ rule, name }) => {
    const { ranks, losses } = tries.byRule(rule);
    return { name, ranks, loss: losses.at(-1) };
  });
  const own = tries.finished.map((tried, i) => ({ name: `try ${i + 1}`, ...tried }));
  const rows = [...own, ...byRule].sort((a, b) => a.loss - b.loss).slice(0, TRIED);
  if (!rows.length) return;
  const layers = tries.ranks.map((_, l) => `layer ${l + 1}`);
  drawTable(root, {
    caption: `Loss after ${networks.STEPS} steps, the lowest first`,
    head: ["", ...layers, "loss"],
    rows: rows.map(({ name, ranks, loss }) => [name, ...ranks, lossText(loss)]),
  });
}
