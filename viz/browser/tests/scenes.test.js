import assert from "node:assert/strict";
import { place, send } from "./dom.js";
import { drawHandout } from "../scenes/handout.js";
import { renderScenes } from "../scenes.js";

/**
 * The page, and its parts that the tests use.
 *
 * @param {number} seed
 */
function draw(seed) {
  const root = place();
  renderScenes(root, seed);
  /** @type {(text: string) => HTMLButtonElement} */
  const button = (text) => [...root.querySelectorAll("button")].find((element) => element.textContent === text);
  /** @type {(selector: string) => string[]} */
  const texts = (selector) => [...root.querySelectorAll(selector)].map((element) => element.textContent);
  /** @type {(i: number) => Event} */
  const tab = (i) => send(root.querySelectorAll("[role=tab]")[i], "click");
  return { root, button, texts, tab };
}

for (const [scene, steps] of [[0, 6], [1, 6], [2, 6]]) {
  Deno.test(`scene ${scene + 1} leads through its steps, and answers what was predicted`, () => {
    const { root, button, texts, tab } = draw(3);
    tab(scene);
    for (let step = 1; step < steps; step++) {
      assert.ok(texts(".count")[0].startsWith(`Step ${step} of ${steps}`));
      const options = [...root.querySelectorAll(".question button")];
      assert.ok(options.length >= 2);
      send(options[0], "click");
      assert.equal(options[0].getAttribute("aria-pressed"), "true");
      send(button("Next"), "click");
      const [answer] = texts(".answered");
      assert.match(answer, /^(Right|You said “.+”, but it is): ./);
      assert.ok(!/NaN|undefined|Infinity/.test(root.textContent), root.textContent);
    }
    assert.equal(root.querySelectorAll(".question").length, 0);
    assert.ok(button("Next").disabled);
    send(button("Back"), "click");
    assert.ok(texts(".count")[0].startsWith(`Step ${steps - 1} of`));
  });
}

Deno.test("the shares follow the angle: they repeat after half a turn, and the line across catches the rest", () => {
  const { root, texts } = draw(2);
  const angle = root.querySelector(".picture input[type=range]"),
    found = [20, 110].map((value) => {
      angle.value = value;
      send(angle, "input");
      return Number.parseFloat(texts(".reading .value")[0]);
    });
  assert.ok(Math.abs(found[0] + found[1] - 100) <= 1, String(found));
});

Deno.test("ranks are handed out by keys, never more than the budget", () => {
  const { root, texts, tab } = draw(2);
  tab(2);
  const [first, second] = root.querySelectorAll(".ranks [role=slider]");
  send(first, "keydown", { key: "End" });
  send(second, "keydown", { key: "ArrowUp" });
  assert.deepEqual([first, second].map((bar) => bar.getAttribute("aria-valuenow")), ["8", "0"]);
  assert.deepEqual(texts(".left"), ["0 of 8 ranks left"]);
  send(first, "keydown", { key: "ArrowDown" });
  send(second, "keydown", { key: "ArrowUp" });
  assert.deepEqual([first, second].map((bar) => bar.getAttribute("aria-valuenow")), ["7", "1"]);
});

Deno.test("another seed is another cloud, and one seed is one cloud", () => {
  const { root } = draw(2),
    cloud = () => [...root.querySelectorAll(".plane circle")].map((dot) => dot.outerHTML).join();
  const before = cloud(), input = root.querySelector("input[type=number]");
  for (const [seed, isSame] of [[7, false], [2, true]]) {
    input.value = seed;
    send(input, "change");
    assert.equal(cloud() === before, isSame);
  }
});

Deno.test("the hand-out has every question of the three scenes", () => {
  const parent = place();
  drawHandout(parent, 2);
  assert.equal(parent.querySelectorAll("li").length, 15);
});
