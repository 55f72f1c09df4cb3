// The page of three scenes that explain LoRA, without a kernel: bundled into `viz/widgets/scenes.js`.

import { button, labeled, onArrows } from "./controls.js";
import { make, put } from "./elements.js";
import { explainer } from "./explain.js";
import { drawHandout } from "./scenes/handout.js";
import { ranksScene } from "./scenes/ranks.js";
import { readsScene } from "./scenes/reads.js";
import { story } from "./scenes/story.js";
import { trainingScene } from "./scenes/training.js";

const SCENES = [
  { title: "1. What does an adapter read?", draw: readsScene },
  { title: "2. What does training do with it?", draw: trainingScene },
  { title: "3. Where should the rank go?", draw: ranksScene },
];
const LARGEST = 9999; // seed

/**
 * Draws the page: a tab per scene, and the seed that everything is computed from.
 *
 * @type {(el: Element, seed?: number) => void}
 */
export function renderScenes(el, seed = 5) {
  const root = make("div", { class: "tlora scenes" }, el), bar = make("div", { class: "tabs" }, root);
  const tabs = make("div", { role: "tablist", "aria-label": "Scenes" }, bar);
  const input = make("input", { type: "number", min: 0, max: LARGEST, step: 1, value: seed }, labeled(bar, "Seed"));
  button(bar, "Print the questions", "A hand-out of one page, with room for answers", () => print());
  const panel = make("div", { role: "tabpanel", class: "scene" }, root);
  const handout = make("section", { class: "handout", "aria-hidden": "true" }, root);
  explainer(root);
  let shown = 0, stop = () => {};
  const buttons = SCENES.map(({ title }, i) => {
    const tab = make("button", { type: "button", role: "tab", id: `scene-${i + 1}` }, tabs, title);
    tab.addEventListener("click", () => show(i));
    return tab;
  });
  onArrows(tabs, (target) => show(buttons.indexOf(target)));
  input.addEventListener("change", () => {
    if (input.value === "" || !input.validity.valid) return;
    seed = Number(input.value);
    show(shown);
  });
  /** @type {(i: number) => void} */
  function show(i) {
    stop();
    shown = i;
    panel.replaceChildren();
    panel.setAttribute("aria-labelledby", `scene-${i + 1}`);
    buttons.forEach((tab, k) => {
      put(tab, "aria-selected", k === i);
      put(tab, "tabindex", k === i ? 0 : -1);
    });
    const text = make("div", { class: "text" }, panel), picture = make("div", { class: "stage" }, panel);
    const scene = SCENES[i].draw(picture, seed);
    story(text, scene);
    stop = scene.stop;
  }
  addEventListener("beforeprint", () => drawHandout(handout, seed));
  show(0);
}
