// The text of a scene: steps, each with a question to answer before the next one shows it.

import { button, group } from "../controls.js";
import { make, put } from "../elements.js";

/**
 * A question: `answer` gives the right option by its index, and a sentence with the numbers.
 *
 * @typedef {{ask: string, options: string[], answer: () => [number, string]}} Question
 */

/**
 * A step: its heading, its paragraphs, and its question, but for the last step.
 *
 * @typedef {{heading: string, text: string[], question?: Question}} Step
 */

/**
 * A scene: its picture is drawn; `show` has it show what a step speaks of, and `stop` ends what runs.
 *
 * @typedef {{steps: Step[], show: (step: number) => void, stop: () => void}} Scene
 */

/**
 * Draws the text of a scene and leads through it.
 *
 * @param {Element} parent
 * @param {Scene} scene
 */
export function story(parent, scene) {
  const { steps } = scene, guesses = steps.map(() => -1);
  const box = make("section", { class: "story", "aria-label": "Text" }, parent);
  const status = make("div", { role: "status" }, box), body = make("div", {}, box);
  const bar = make("div", { class: "bar" }, box);
  const back = button(bar, "Back", "The step before", () => go(at - 1));
  const next = button(bar, "Next", "Show the answer and go on", () => go(at + 1), { class: "primary" });
  let at = 0;
  /** @type {(step: number) => void} */
  function go(step) {
    const isFirst = body.childElementCount === 0;
    at = step;
    status.replaceChildren();
    const before = step ? steps[step - 1].question : null;
    if (before) drawAnswer(status, before, guesses[step - 1]);
    const { heading: title, text, question } = steps[step];
    body.replaceChildren();
    make("div", { class: "count" }, body, `Step ${step + 1} of ${steps.length}`);
    const heading = make("h2", { tabindex: -1 }, body, title);
    for (const words of text) make("p", {}, body, words);
    if (question) drawQuestion(body, question, guesses, step);
    back.disabled = step === 0;
    next.disabled = step === steps.length - 1;
    scene.show(step);
    if (!isFirst) heading.focus({ preventScroll: true });
  }
  go(0);
}

/** @type {(parent: Element, question: Question, guesses: number[], step: number) => void} */
function drawQuestion(parent, { ask, options }, guesses, step) {
  const box = make("div", { class: "question" }, parent);
  make("p", { class: "ask" }, box, `Predict: ${ask}`);
  const row = group(box, ask);
  const buttons = options.map((option, i) =>
    button(row, option, "", () => {
      guesses[step] = i;
      mark();
    })
  );
  const mark = () => buttons.forEach((element, i) => put(element, "aria-pressed", guesses[step] === i));
  mark();
}

/** @type {(parent: Element, question: Question, guess: number) => void} */
function drawAnswer(parent, { options, answer }, guess) {
  const [right, sentence] = answer(), box = make("p", { class: "answered" }, parent);
  const verdict = guess < 0 ? "The answer" : guess === right ? "Right" : `You said “${options[guess]}”, but it is`;
  make("b", {}, box, `${verdict}: ${options[right]}. `);
  box.append(sentence);
}
