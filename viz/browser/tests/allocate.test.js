import assert from "node:assert/strict";
import CASES from "./apportionments.json" with { type: "json" };
import { RULE as EXAMPLE } from "./examples.js";
import { allocate, apportion, apportionByGain } from "../allocate.js";

// Python checks its own rule against the same numbers: tests/unit/viz/widgets/test_bundle.py.
CASES.forEach(({ weights, gains, budget, low, high, costs, units }, i) => {
  Deno.test(`apportionment ${i} is that of Python`, () => {
    const found = weights
      ? apportion(weights, budget, low, high, costs)
      : apportionByGain(gains, budget, low, high, costs);
    assert.deepEqual(found, units);
  });
});

const ABOUT = { outs: [4, 4, 8], ins: [4, 4, 4], experts: [1, 1, 1] };
const RULE = { ...EXAMPLE, floors: [0, 0, 0] };

Deno.test("ranks are in proportion to scores, and each has its reason", () => {
  const { ranks, reasons, scalings } = allocate(RULE, ABOUT);
  assert.deepEqual(ranks, [1, 1, 4]);
  assert.deepEqual(reasons, ["score", "score", "score"]);
  assert.deepEqual(scalings, [1, 1, 1]);
});

Deno.test("each expert of a parameter pays for its rank", () => {
  const mixture = { ...ABOUT, experts: [1, 1, 4] };
  const { ranks } = allocate({ ...RULE, scores: [1, 1, 1], edits: { 2: 1 } }, mixture);
  assert.deepEqual(ranks, [4, 4, 1]); // 2 * (1 + 1 + 4) = 12 in all, of which the four experts take 4
});

Deno.test("a rank by hand and a module left out: the others share the rest", () => {
  const { ranks, reasons } = allocate({ ...RULE, edits: { 0: 3 }, excluded: [1] }, ABOUT);
  assert.deepEqual(ranks, [3, 0, 3]);
  assert.deepEqual(reasons, ["by hand", "left out", "floor"].with(2, "score"));
});

Deno.test("what the limits do not allow is refused", () => {
  for (const rule of [{ floors: [3, 3, 3] }, { ceilings: [1, 1, 1] }, { scores: [0, 0, 0] }, { edits: { 0: 5 } }]) {
    assert.throws(() => allocate({ ...RULE, ...rule }, ABOUT), RangeError);
  }
});
