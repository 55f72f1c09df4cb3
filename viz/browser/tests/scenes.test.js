import assert from "node:assert/strict";
import { place, send } from "./dom.js";
import { drawHandout } from "../scenes/handout.js";
import { leadingAngles, makeInputs, measure } from "../scenes/inputs.js";
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
  assert.match(texts(".left")[0], /^0 of 8 ranks left/);
  send(first, "keydown", { key: "ArrowDown" });
  send(second, "keydown", { key: "ArrowUp" });
  assert.deepEqual([first, second].map((bar) => bar.getAttribute("aria-valuenow")), ["7", "1"]);
});

Deno.test("a mark turns the line to it: its button, and its name in the picture", () => {
  const { root, button } = draw(2);
  for (let step = 1; step < 4; step++) send(button("Next"), "click");
  const angle = root.querySelector(".picture input[type=range]");
  /** @type {Record<string, number>} */
  const turned = {};
  for (const name of ["principal", "W C", "gradient", "random"]) {
    send(button(name), "click");
    turned[name] = Number(angle.value);
    angle.value = 0;
    send(angle, "input");
    const mark = [...root.querySelectorAll(".mark-name")].find(({ textContent }) => textContent === name);
    send(mark, "pointerdown", { button: 0, clientX: 0, clientY: 0 });
    assert.equal(Number(angle.value), turned[name], name);
  }
  const { principal, wc, gradient } = leadingAngles(measure(makeInputs(2)));
  const expected = [principal, wc, gradient].map((value) => (Math.round((180 * value) / Math.PI) + 180) % 180);
  assert.deepEqual(["principal", "W C", "gradient"].map((name) => turned[name]), expected);
});

Deno.test("no names meet in the plane, wherever the mean is", () => {
  for (let seed = 0; seed < 6; seed++) {
    const { root, button } = draw(seed);
    for (let step = 1; step < 5; step++) send(button("Next"), "click");
    const [, across, up] = root.querySelectorAll(".picture input[type=range]");
    for (const mean of [[0, 0], [-3, 3]]) {
      [across, up].forEach((slider, i) => {
        slider.value = mean[i];
        send(slider, "input");
      });
      const names = [...root.querySelector(".plane").querySelectorAll("text")].map((text) => {
        const x = Number(text.getAttribute("x")), wide = 6.5 * text.textContent.length;
        const left = text.getAttribute("text-anchor") === "middle" ? x - wide / 2 : x;
        return { name: text.textContent, left, right: left + wide, y: Number(text.getAttribute("y")) };
      });
      for (const [i, a] of names.entries()) {
        for (const b of names.slice(0, i)) {
          const isApart = a.right < b.left || b.right < a.left || Math.abs(a.y - b.y) > 12;
          assert.ok(isApart, `seed ${seed}, mean ${mean}: ${a.name} and ${b.name}`);
        }
      }
    }
  }
});

Deno.test("a rank beyond the budget is refused with the reason, until another bar moves", () => {
  const { root, texts, tab } = draw(2);
  tab(2);
  const [first, second] = root.querySelectorAll(".ranks [role=slider]");
  send(first, "keydown", { key: "End" });
  send(first, "keydown", { key: "ArrowUp" }); // the bar is full
  assert.deepEqual(texts(".left"), ["0 of 8 ranks left"]);
  send(second, "keydown", { key: "ArrowUp" });
  assert.deepEqual(texts(".left"), ["0 of 8 ranks left: to raise a layer, lower another one first"]);
  send(first, "keydown", { key: "ArrowDown" });
  assert.deepEqual(texts(".left"), ["1 of 8 ranks left"]);
});

Deno.test("ranks are trained to any step by its slider, and back; the last step is a try", () => {
  const { root, button, texts, tab } = draw(2);
  tab(2);
  send(root.querySelector(".ranks [role=slider]"), "keydown", { key: "End" });
  const slider = root.querySelector(".picture input[type=range]");
  const points = () => (root.querySelector(".curve.c0").getAttribute("d").match(/[ML]/g) ?? []).length;
  for (const step of [30, 120, 10]) {
    slider.value = step;
    send(slider, "input");
    assert.equal(points(), step + 1);
    assert.equal(texts("th[scope=row]").includes("try 1"), step !== 30);
  }
  send(button("Step"), "click");
  assert.equal(slider.value, "11");
  send(button("Start again"), "click");
  assert.equal(points(), 1);
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
