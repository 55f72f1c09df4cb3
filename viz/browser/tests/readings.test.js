import assert from "node:assert/strict";
import { ends, readByExpert, readTokens, unpack } from "../panels/readings.js";

// Two samples: "<s> a b" and "<s> a"; the first token is constant (part 0).
const TOKENS = readTokens({ texts: ["<s>", "a", "b"], text: [0, 1, 2, 0, 1], part: "01101", sample: [0, 0, 0, 1, 1] });

Deno.test("samples begin and end where they do, and equal tokens of one part are one", () => {
  assert.deepEqual(TOKENS.spans, [[0, 3], [3, 5]]);
  assert.equal(TOKENS.all[TOKENS.group[1]], 2);
  assert.equal(TOKENS.group[0], TOKENS.group[3]);
  assert.equal(TOKENS.before(2, 2), "<s>a");
  assert.equal(TOKENS.before(4, 9), "<s>");
});

Deno.test("an end has the tokens beyond half of its peak, the furthest first, each once", () => {
  const high = ends([0, 1, 0.4, 0, 2], 1, TOKENS);
  assert.deepEqual(high, [{ at: 4, hits: 2, all: 2 }]);
  assert.deepEqual(ends([-2, 3, -1.2, 0, 0], -1, TOKENS).map(({ at }) => at), [0, 2]);
  assert.deepEqual(ends([10, 0, -1, 0, 0], -1, TOKENS), []);
});

Deno.test("values are bytes times the scale of their row; the last row is the need", () => {
  const values = btoa(String.fromCharCode(1, 255, 2, 3));
  const { row, need } = unpack({ module: 0, directions: 1, scales: [0.5, 2], values }, true);
  assert.deepEqual(row?.(0), [0.5, -0.5]);
  assert.deepEqual(need, [4, 6]);
  const { module, directions, need: unknown } = unpack({ module: 3 }, true);
  assert.deepEqual([module, directions, unknown], [3, 0, null]);
});

Deno.test("values of an expert are those of the tokens that are routed to it, and others are 0", () => {
  const values = btoa(String.fromCharCode(1, 255)), routed = [1, 4];
  const reading = unpack({ module: 0, expert: 3, routed, directions: 1, scales: [0.5], values }, false, 5);
  assert.deepEqual(reading.row(0), [0, 0.5, 0, 0, -0.5]);
  const { all } = readByExpert(TOKENS, new Set([1])), [high] = ends(reading.row(0), 1, { ...TOKENS, all });
  assert.deepEqual(high, { at: 1, hits: 1, all: 1 });
  assert.equal(readByExpert(TOKENS, null), TOKENS);
});
