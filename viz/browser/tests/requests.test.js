import assert from "node:assert/strict";
import { modelOf } from "./dom.js";
import { Requests } from "../workbench/requests.js";

const make = () => {
  const model = modelOf({});
  return { requests: new Requests(model, () => false, () => false), calls: () => model.sent.map(({ args }) => args.n) };
};

Deno.test("one request is under way at a time", () => {
  const { requests, calls } = make();
  for (const n of [1, 2]) requests.ask("set", { n });
  assert.deepEqual(calls(), [1]);
  requests.answered(false);
  assert.deepEqual(calls(), [1, 2]);
  assert.equal(requests.isIdle, false);
  requests.answered(false);
  assert.equal(requests.isIdle, true);
});

Deno.test("of the requests of one gesture that wait, the last is sent; those of others are all sent", () => {
  const { requests, calls } = make();
  /** @type {[number, string | null][]} */
  const asked = [[1, "a"], [2, "a"], [3, "a"], [4, "b"], [5, null], [6, null]];
  for (const [n, gesture] of asked) requests.ask("set", { n }, gesture);
  for (let i = 0; i < 6; i++) requests.answered(false);
  assert.deepEqual(calls(), [1, 3, 4, 5, 6]);
});

Deno.test("when the user rests, resamples are asked for until there are no more, and again for others", async () => {
  const model = modelOf({}), requests = new Requests(model, () => true, () => false);
  /** @type {(ms: number) => Promise<void>} */
  const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  requests.rest();
  assert.equal(model.sent.length, 0);
  await rest(450);
  requests.answered(true);
  await rest(20);
  requests.answered(false);
  await rest(450);
  assert.deepEqual(model.sent.map(({ call, id }) => [call, id]), [["resample", 1], ["resample", 1]]);
  requests.changed();
  requests.stop();
  assert.equal(requests.version, 2);
});
