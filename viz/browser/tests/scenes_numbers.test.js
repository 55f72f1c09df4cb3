import assert from "node:assert/strict";
import EXPECTED from "./scenes.json" with { type: "json" };
import { leadingAngles, makeInputs, measure, randomShares, sharesAt } from "../scenes/inputs.js";
import * as layers from "../scenes/layer.js";
import * as networks from "../scenes/network.js";

// Python computes the numbers with NumPy and PyTorch, and tests that they are those: tests/helpers/scenes.py.

/** Asserts that values, however deep in arrays and records, are within 1e-6 of those expected. */
function near(found, expected, where) {
  if (typeof expected === "number") {
    assert.ok(
      Math.abs(found - expected) < 1e-6 * Math.max(1, Math.abs(expected)),
      `${where}: ${found}, not ${expected}`,
    );
  } else if (expected === null) assert.ok(!(found < 1e6), `${where}: ${found} did not diverge`);
  else for (const name of Object.keys(expected)) near(found[name], expected[name], `${where}.${name}`);
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
    for (const [name, floor] of Object.entries(expected.floors)) near(layers.floorOf(layer[name], layer), floor, name);
    for (const [method, losses] of Object.entries(expected.losses)) {
      let training = layers.begin(layer, method);
      losses.forEach((loss, n) => {
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
    for (const [rule, ranks] of Object.entries(expected.ranks)) {
      if (rule !== "class") assert.deepEqual(networks.ranksBy(rule, network), ranks, rule);
      let training = networks.begin(network, ranks);
      for (let n = 0; n < networks.STEPS; n++) training = networks.step(network, training);
      near(training.losses.filter((_, n) => n % 40 === 0), expected.losses[rule], rule);
    }
  });
}
