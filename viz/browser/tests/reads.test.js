import assert from "node:assert/strict";
import { modelOf, place, send } from "./dom.js";
import { ABOUT, CURRENT } from "./examples.js";
import { readsPart } from "../panels/reads.js";

// One sample "a b c"; module 0 is linear, module 1 a parameter whose expert 3 reads two tokens and expert 0 one.
const PART = {
  kinds: ["wc"],
  meanings: ["W C"],
  parts: ["constant", "prompt", "labels"],
  sides: { input_ids: { texts: ["a", "b", "c"], text: [0, 1, 2], part: "111", sample: [0, 0, 0] } },
  side: ["input_ids", "input_ids", null],
  experts: [[], [[3, 2], [0, 1]], []],
  constant: [[0.1], [null], [null]],
  agreement: [[0.2], [null], [null]],
  words: [[], [], []],
  sinks: [],
  need: false,
  samples: 1,
  of: 1,
};
const bytes = (/** @type {number[]} */ ...values) => btoa(String.fromCharCode(...values));

Deno.test("of a parameter the reads of the expert with most tokens come first, and others are chosen", () => {
  const current = { ...CURRENT, experts: [[], [1, 2, 2, 1], []] };
  const model = modelOf({ current, selected: [1], reading: {} }), root = place();
  /** @type {(object | undefined)[]} */
  const asked = [];
  const about = { ...ABOUT, experts: [1, 4, 4] };
  readsPart(root, PART, { about, model, ask: (_call, args) => asked.push(args) });
  assert.deepEqual(asked, [{ module: 1, expert: 3 }]);
  const shares = { constant: [0.5], agreement: [0.25] };
  const routed = { ...shares, directions: 2, scales: [1, 1] };
  model.set("reading", { ...routed, module: 1, expert: 3, routed: [0, 2], values: bytes(5, 251, 1, 255) });
  const said = () => root.textContent ?? "";
  assert.match(said(), /wc 50\u00a0% of z\u00b2.*agree: wc 25\u00a0%/);
  assert.match(said(), /rank 1: directions above are kept/);
  const select = root.querySelector("select");
  assert.deepEqual([...select.querySelectorAll("option")].map((one) => one.textContent), ["3: 2 tokens", "0: 1 token"]);
  send(root.querySelector(".ends"), "click");
  assert.match(root.querySelector(".unread").getAttribute("title"), /b.*not routed to this expert/);
  select.value = "0";
  send(select, "change");
  assert.deepEqual(asked[1], { module: 1, expert: 0 });
  model.set("reading", { ...routed, module: 1, expert: 0, routed: [1], values: bytes(7, 3) });
  assert.match(root.querySelector(".ends").getAttribute("aria-label"), /high at .b/);
  model.set("selected", [2]);
  model.set("reading", { module: 2 });
  assert.match(said(), /was not looked at/);
});
