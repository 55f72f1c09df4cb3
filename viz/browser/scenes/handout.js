// What is printed: the questions of all scenes on one page, with room for answers.

import { make } from "../elements.js";
import { capitalized } from "../text.js";
import { makeLayer } from "./layer.js";
import { triesOf } from "./ranks.js";
import { ranksSteps } from "./ranks_steps.js";
import { readsSteps } from "./reads_steps.js";
import { trainingSteps } from "./training_steps.js";

/**
 * Draws the questions for a seed.
 *
 * @type {(parent: Element, seed: number) => void}
 */
export function drawHandout(parent, seed) {
  parent.replaceChildren();
  make(
    "p",
    {},
    parent,
    `Seed ${seed}. Answer each question before you press Next; then write down what the page shows.`,
  );
  const scenes = {
    "1. What does an adapter read?": readsSteps(seed),
    "2. What does training do with it?": trainingSteps(makeLayer(seed)),
    "3. Where should the rank go?": ranksSteps(triesOf(seed)),
  };
  for (const [title, steps] of Object.entries(scenes)) {
    make("h2", {}, parent, title);
    const list = make("ol", {}, parent);
    for (const { question } of steps) {
      if (question) {
        make(
          "li",
          {},
          list,
          `${capitalized(question.ask)} ${question.options.map((option) => `☐ ${option}`).join("  ")}`,
        );
      }
    }
  }
}
