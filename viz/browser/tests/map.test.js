import assert from "node:assert/strict";
import "./dom.js";
import { BLUE, groundOf, inkOn, RED } from "../colors.js";
import { paletteOf } from "../workbench/map.js";
import { CURRENT } from "./examples.js";

const bench = { current: { ...CURRENT, middles: { rank: 8 } } };

Deno.test("the colors of ranks span those that are there, on each side of the nominal rank", () => {
  for (const dark of [false, true]) {
    const { fill, ends } = paletteOf(bench, { name: "rank", kind: "ratio" }, [2, 8, 21, null], dark);
    assert.deepEqual([fill(2), fill(8), fill(21)], [BLUE, groundOf(dark), RED]);
    assert.deepEqual(ends, ["2", "8", "21"]);
    assert.equal(inkOn(fill(21)), "#fff");
  }
});

Deno.test("ranks that hardly differ are pale: half and twice the nominal rank are the least that is spanned", () => {
  const { fill, ends } = paletteOf(bench, { name: "rank", kind: "ratio" }, [8, 9], false);
  assert.deepEqual(ends, ["4", "8", "16"]);
  assert.ok(fill(9)[1] > 150);
});

Deno.test("changes are as far on one side as on the other, and a share that is zero everywhere has no color", () => {
  const { fill, ends } = paletteOf(bench, { name: "change", kind: "change" }, [5, -1, 0], false);
  assert.deepEqual(fill(5), RED);
  assert.ok(fill(-1)[0] > 200);
  assert.deepEqual(ends, ["\u22125", "0", "+5"]);
  assert.deepEqual(paletteOf(bench, { name: "x", kind: "percent" }, [0, 0], false).fill(0), groundOf(false));
});
