import assert from "node:assert/strict";
import { modelOf, place, send } from "./dom.js";
import { ABOUT, CURRENT } from "./examples.js";
import { racePanel } from "../race.js";

/** @import { Comparison, Race } from "../traits.js" */

const RACE = /** @type {Race} */ (CURRENT.race);

/**
 * A race that has ended; the second arm has the lower loss.
 *
 * @type {(said: string) => Comparison}
 */
const ended = (said) => ({
  said,
  basis: "3 steps",
  leader: "new",
  difference: RACE.difference,
  arms: {
    kept: { ...RACE.arms.kept, loss: 0.5, interval: "+0.1 to +0.2", held: [[0, 3], [3, 0.5]], planned: 3, step: 3 },
    new: { ...RACE.arms.new, loss: 0.35, held: [[0, 3], [3, 0.35]], planned: 3, step: 3 },
  },
});

/** @param {Record<string, unknown>} values */
function panel(values = {}) {
  const el = place(), model = modelOf({ training: {}, races: [], ...values });
  const tell = racePanel(el, { about: ABOUT, model, ask: () => {}, width: () => 800 });
  /** @type {(race?: Partial<Race>) => void} */
  const show = (race = {}) => tell({ race: { ...RACE, ...race } });
  /** @type {(selector: string) => string} */
  const text = (selector) => el.querySelector(selector).textContent;
  /** @type {(name: string) => void} */
  const press = (name) => {
    send([...el.querySelectorAll("button")].find((button) => button.textContent === name), "click");
  };
  show();
  return { el, model, show, text, press };
}

const OTHER = { ...RACE.arms, new: { ...RACE.arms.new, code: "new = 2", ranks: [3, 1, 2] } };

Deno.test("before a race, two columns say what each allocation is, and between them is the map of differences", () => {
  const { el, text } = panel();
  assert.deepEqual([...el.querySelectorAll(".arm h3")].map((head) => head.textContent), ["kept", "new"]);
  assert.deepEqual([...el.querySelectorAll(".arm code")].map((code) => code.textContent), ["kept = 1", "new = 1"]);
  assert.equal(text(".lead"), "new adds 1 rank");
  const titles = [...el.querySelectorAll(".difference rect title")].map((title) => title.textContent);
  assert.deepEqual(titles, ["layer 0 v: \u22121", "layer 1 q: +1"]);
  const [less, more] = [...el.querySelectorAll(".difference rect")].filter((rect) => rect.querySelector("title"));
  assert.equal(less.getAttribute("fill"), "rgb(33,102,172)");
  assert.equal(more.getAttribute("fill"), "rgb(178,24,43)");
  assert.equal(text(".status"), "");
  assert.equal(el.querySelector(".races"), null);
});

Deno.test("a verdict is shown while the map has the allocations that were raced, and comes back with them", () => {
  const { el, show, text } = panel({ races: [ended("new is ahead")] });
  assert.equal(text(".status"), "");
  show({ raced: 0 });
  assert.equal(text(".status"), "new is ahead");
  assert.match(text(".arm[data-arm=kept] .outcome"), /^0\.500held-out loss\+0\.1 to \+0\.2 above new$/);
  assert.match(text(".arm[data-arm=new] .outcome"), /the lower loss$/);
  assert.equal(el.querySelectorAll(".curves path.curve").length, 4);
  show({ arms: OTHER });
  assert.equal(text(".status"), "");
  assert.equal(text(".arm[data-arm=new] code"), "new = 2");
  show({ raced: 0 });
  assert.equal(text(".status"), "new is ahead");
});

Deno.test("the list has every race with its arms, the last first, and shows one that is chosen", () => {
  const { el, show, text, press } = panel({ races: [ended("first"), ended("second")] });
  show({ arms: OTHER });
  assert.deepEqual([...el.querySelectorAll(".races .verdict")].map((head) => head.textContent), [
    "Race 2second",
    "Race 1first",
  ]);
  const line = [...el.querySelector(".races .line").children].map((cell) => cell.textContent);
  assert.deepEqual(line, ["kept", "0.500", "+0.1 to +0.2", "40 parameters", "kept = 1"]);
  press("Race 1");
  assert.equal(text(".status"), "first");
  assert.equal(text(".arm[data-arm=new] code"), "new = 1"); // of the race, not of the map
  assert.equal(el.querySelector(".train").classList.contains("past"), true);
  assert.equal(el.querySelector(".other").hidden, false);
  press("Compare what it shows");
  assert.equal(text(".status"), "");
  assert.equal(el.querySelector(".train").classList.contains("past"), false);
  press("Race 2");
  show();
  assert.equal(text(".status"), ""); // the map has changed
});

Deno.test("of more than four races, the earlier ones are folded", () => {
  const { el } = panel({ races: ["a", "b", "c", "d", "e", "f"].map(ended) });
  assert.equal(el.querySelector("details summary").textContent, "2 earlier");
  assert.equal(el.querySelectorAll("details li").length, 2);
  assert.equal(el.querySelectorAll("li").length, 6);
});

Deno.test("a race that ends while the map shows others stays until the map changes, and says so", () => {
  const { el, model, show, text } = panel();
  const live = { ...ended("new is ahead"), number: 0, running: true };
  model.set("training", live);
  show({ arms: OTHER });
  assert.equal(text(".status"), "new is ahead");
  assert.equal(el.querySelector(".train").classList.contains("past"), true);
  model.set("training", { ...live, running: false, winner: "new" });
  model.set("races", [ended("new is ahead")]);
  show({ arms: OTHER });
  assert.equal(text(".status"), "new is ahead");
  show({ raced: 0, is_live: true });
  assert.equal(el.querySelector(".train").classList.contains("past"), false);
  assert.equal(text(".status"), "new is ahead");
  show({ arms: OTHER });
  assert.equal(text(".status"), "");
});
