import assert from "node:assert/strict";
import { ABOUT, CURRENT, RULE } from "./examples.js";
import { offline } from "../offline.js";

/** @import { Current } from "../traits.js" */

/** @param {Partial<Current>} more */
function page(more = {}) {
  const about = { ...ABOUT, names: ["a", "b", "c"], outs: [4, 4, 4], ins: [4, 4, 4], experts: [1, 1, 1] };
  const current = { ...CURRENT, ranks: [1, 1, 4], ...more }, readings = [0, 1, 2].map((module) => ({ module }));
  const model = offline({ about, current, stage: "allocation", tab: "rank", selected: [0], rule: RULE, readings });
  /** @type {(number | undefined)[]} */
  const answers = [];
  model.on("msg:custom", ({ answer }) => answers.push(answer));
  /** @type {(call: string, args?: object, gesture?: string | null) => Current} */
  const ask = (call, args = {}, gesture = null) => {
    model.send({ call, args, gesture, id: 1 });
    return model.get("current");
  };
  return { model, ask, answers };
}

Deno.test("a rank is set, the others share the rest, and the change is undone and repeated", () => {
  const { ask, answers } = page();
  assert.deepEqual(ask("set_rank", { modules: [0], rank: 3 }).ranks, [3, 1, 2]);
  const { ranks, undo, redo } = ask("undo");
  assert.deepEqual([ranks, undo, redo], [[1, 1, 4], 0, 1]);
  assert.deepEqual(ask("redo").ranks, [3, 1, 2]);
  ask("undo");
  const released = ask("release", { modules: [0] }); // a change after an undo leaves nothing to repeat
  assert.deepEqual([released.ranks, released.redo], [[1, 1, 4], 0]);
  assert.equal(answers.length, 5);
});

Deno.test("one gesture is one step to undo", () => {
  const { ask } = page();
  for (const rank of [2, 3, 4]) ask("set_rank", { modules: [0], rank }, "drag 1");
  assert.equal(ask("set_rank", { modules: [1], rank: 1 }, "drag 2").undo, 2);
});

Deno.test("a rank that does not fit becomes the nearest that does, and an option that does not is refused", () => {
  const { ask } = page(), found = ask("set_rank", { modules: [0, 1], rank: 4 });
  assert.deepEqual(found.ranks.slice(0, 2), [2, 2]);
  assert.match(found.message ?? "", /2 is the nearest/);
  const refused = ask("set", { rank: 9 });
  assert.deepEqual(refused.ranks, found.ranks);
  assert.notEqual(refused.message, "");
});

Deno.test("the line of Python has what was changed, and a module that is left out", () => {
  const { ask } = page();
  ask("set", { temperature: 0.5 });
  ask("set_rank", { modules: [2], rank: 2 });
  const { code, reasons } = ask("leave_out", { modules: [1] });
  assert.equal(reasons[1], "left out");
  const options = "rank=2, temperature=0.5, exclude_modules=['b']";
  assert.equal(code, `tlora.allocate(calibration.sensitivity, ${options}).edit({'c': 2})`);
});

Deno.test("a panel that follows the allocation says that its tables do not follow changes", () => {
  const { parts } = page().ask("set_rank", { modules: [0], rank: 3 });
  assert.deepEqual(parts.allocation.map(({ kind }) => kind), ["text", "table"]);
});

Deno.test("readings come from the page", () => {
  const { model, ask } = page();
  ask("read", { module: 1 });
  assert.deepEqual(model.get("reading"), { module: 1 });
});

Deno.test("a page does not change ranks of experts, and says so", () => {
  const experts = [[1, 1], [1, 1], [3, 5]], { ask } = page({ experts });
  const { ranks, message = "", experts: shown } = ask("set_rank", { modules: [0], rank: 3 });
  assert.deepEqual([ranks, shown], [[1, 1, 4], experts]);
  assert.match(message, /ranks of their own/);
});
