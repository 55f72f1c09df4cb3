import assert from "node:assert/strict";
import EXPECTED from "./scenes.json" with { type: "json" };
import { leadingAngles, makeInputs, measure, randomShares, sharesAt } from "../scenes/inputs.js";
import * as layers from "../scenes/layer.js";
import * as networks from "../scenes/network.js";

// Python computes the numbers with NumPy and PyTorch, and tests that they are those: tests/helpers/scenes.py.

/** @import { Method } from "../scenes/layer.js" */
/** @import { Rule } from "../scenes/network.js" */
/** @typedef {{readonly [i: number]: Values, readonly length: number}} List */
/** @typedef {number | null | undefined | List | {[name: string]: Values}} Values Numbers in arrays and records. */

/** @type {Method[]} */
const METHODS = ["random", "gradient", "lora", "full"];
/** @type {(Rule | "class")[]} */
const ALLOCATIONS = ["uniform", "sensitivity", "captured", "class"];

/**
 * The numbers in arrays and records, however deep, and where they are.
 *
 * @type {(values: Values, where: string) => [string, number | null][]}
 */
function numbersIn(values, where) {
  if (typeof values !== "object" || values === null) return [[where, values ?? null]];
  return Object.entries(values).flatMap(([name, value]) => numbersIn(value, `${where}.${name}`));
}

/**
 * Asserts that numbers are within 1e-6 of those expected.
 *
 * @type {(found: Values, expected: Values, where: string) => void}
 */
function near(found, expected, where) {
  const numbers = new Map(numbersIn(found, where));
  for (const [name, wanted] of numbersIn(expected, where)) {
    const value = numbers.get(name) ?? NaN;
    if (wanted === null) assert.ok(!(value < 1e6), `${name}: ${value} did not diverge`);
    else assert.ok(Math.abs(value - wanted) < 1e-6 * Math.max(1, Math.abs(wanted)), `${name}: ${value}, not ${wanted}`);
  }
}

for (const expected of EXPECTED.reads) {
  Deno.test(`what directions read is what NumPy says, seed ${expected.seed}`, () => {
    const inputs = makeInputs(expected.seed), found = measure(inputs), angles = leadingAngles(found);
    near(angles, expected.angles, "angles");
    near(inputs.random, expected.random, "random");
    near(leadingAngles(measure(inputs, false)), expected.uncentered, "uncentered");
    const shares = [...EXPECTED.angles, ...Object.values(angles)].map((angle) => sharesAt(found, angle));
    near(shares, expected.shares, "shares");
    for (const { dimension, mean, most } of expected.by_chance) {
      const random = randomShares(expected.seed, dimension);
      near(random.reduce((sum, share) => sum + share, 0) / random.length, mean, "mean by chance");
      near(Math.max(...random), most, "most by chance");
    }
  });
}

for (const expected of EXPECTED.layer) {
  Deno.test(`trainings of a layer are those of PyTorch, seed ${expected.seed}`, () => {
    const layer = layers.makeLayer(expected.seed);
    const floors = { random: layers.floorOf(layer.random, layer), gradient: layers.floorOf(layer.gradient, layer) };
    near(floors, expected.floors, "floors");
    for (const method of METHODS) {
      let training = layers.begin(layer, method);
      expected.losses[method].forEach((loss, n) => {
        near(layers.lossOf(training.update, layer), loss, `${method} ${10 * n}`);
        for (let k = 0; k < 10; k++) training = layers.step(layer, training, 0.3);
      });
      near(layers.lossesByRate(layer, method, EXPECTED.rates, 50), expected.by_rate[method], `${method} by rate`);
    }
  });
}

for (const expected of EXPECTED.network) {
  Deno.test(`ranks and losses of a network are those of PyTorch, task ${expected.task}, seed ${expected.seed}`, () => {
    const network = networks.makeNetwork(expected.seed, networks.TASKS[expected.task]);
    near(network.scores, expected.scores, "scores");
    near(network.captured, expected.captured, "captured");
    for (const rule of ALLOCATIONS) {
      const ranks = expected.ranks[rule];
      if (rule !== "class") assert.deepEqual(networks.ranksBy(rule, network), ranks, rule);
      let training = networks.begin(network, ranks);
      for (let n = 0; n < networks.STEPS; n++) training = networks.step(network, training);
      near(training.losses.filter((_, n) => n % 40 === 0), expected.losses[rule], rule);
    }
  });
}
