// The text of scene 3, and the rules that share the budget.

import { lossText } from "../text.js";

/** @import { Option } from "../controls.js" */
/** @import { Rule } from "./network.js" */
/** @import { Tasks, Tries } from "./ranks.js" */
/** @import { Step } from "./story.js" */

export const HARD_FROM = 4; // the step of the text from which on there are two tasks
const CLEARLY = 0.97; // of the loss of uniform ranks
export const TRIED = 10; // rows of the table of tries
/** @type {Option[]} */
export const TASK_NAMES = [
  ["large", "changes layers of large weights"],
  ["small", "changes a layer of small weights"],
];

/** @typedef {{rule: Rule, name: string, from: number, color: number}} ShownRule */

/** @type {ShownRule[]} A rule is shown from a step of the text on. */
export const RULES = [
  { rule: "uniform", name: "uniform", from: 1, color: 5 },
  { rule: "sensitivity", name: "by sensitivity", from: 3, color: 1 },
  { rule: "captured", name: "by captured gradient", from: 5, color: 2 },
];

/** @type {(tries: Tries, rule: Rule) => number} */
const lossOf = (tries, rule) => tries.byRule(rule).loss;
/** @type {(tries: Tries, rule: Rule) => string} */
const ranksOf = (tries, rule) => tries.byRule(rule).ranks.join(", ");

/**
 * The steps, with answers for the two tasks.
 *
 * @type {(tasks: Tasks) => Step[]}
 */
export function ranksSteps(tasks) {
  return [...stepsOfOneTask(tasks), ...stepsOfBothTasks(tasks)];
}

/**
 * Whether sensitivity beats uniform ranks.
 *
 * @type {(tries: Tries) => [number, string]}
 */
function compared(tries) {
  const uniform = tries.byRule("uniform"), scored = tries.byRule("sensitivity"), { loss } = scored;
  const words = `Ranks ${scored.ranks.join(", ")} leave ${lossText(loss)} of the loss, uniform ones ${
    lossText(uniform.loss)
  }.`;
  if (String(uniform.ranks) === String(scored.ranks)) return [2, words];
  return [loss < uniform.loss ? 0 : 1, words];
}

/**
 * Own ranks, uniform ones, and a score.
 *
 * @type {(tasks: Tasks) => Step[]}
 */
function stepsOfOneTask({ large }) {
  return [
    {
      heading: "Four layers, eight ranks",
      text: [
        "A network of four layers with 8 inputs each has learned something, and a new task asks for changes in " +
        "some of its layers. You do not know in which.",
        "Hand out the ranks: drag a bar up or down. Then press Run: A is the gradient’s leading directions in " +
        "each layer, B is trained. Try at least twice.",
      ],
      question: {
        ask: "will your best try beat two ranks for every layer?",
        options: ["Yes", "No"],
        answer: () => {
          const uniform = lossOf(large, "uniform"), losses = large.finished.map(({ loss }) => loss);
          if (!losses.length) {
            return [1, `Nothing was tried yet. Two ranks each leave ${lossText(uniform)} of the loss.`];
          }
          const best = Math.min(...losses), words = `Your best try leaves ${lossText(best)} of the loss`;
          return [best < uniform ? 0 : 1, `${words}, two ranks each leave ${lossText(uniform)}.`];
        },
      },
    },
    {
      heading: "Uniform ranks are hard to beat",
      text: [
        "The dashed line is uniform: two ranks each, whatever the task. The table keeps your tries, the best on top.",
        "A rule has to do without tries: it sees the network before training. Sensitivity is the mean of " +
        "|weight × gradient| over the entries of a layer and the samples.",
      ],
      question: {
        ask: "which layer has the highest score?",
        options: ["Layer 1", "Layer 2", "Layer 3", "Layer 4"],
        answer: () => {
          const { scores } = large.network, most = scores.indexOf(Math.max(...scores));
          return [
            most,
            `The scores are ${scores.map((score) => (1000 * score).toFixed(0)).join(", ")}, in thousandths.`,
          ];
        },
      },
    },
    {
      heading: "A score per layer",
      text: [
        "The scores stand below the bars. Ranks follow them by largest remainders, as in the workbench: rank = " +
        "8 · score / sum of scores, rounded so that the sum is 8.",
        "Work the ranks out, set them with the bars, and run them.",
      ],
      question: {
        ask: "do ranks by these scores beat uniform ranks on this task?",
        options: ["Yes", "No", "The ranks are the same"],
        answer: () => compared(large),
      },
    },
  ];
}

/**
 * When the score is right, when it is wrong, and another rule.
 *
 * @type {(tasks: Tasks) => Step[]}
 */
function stepsOfBothTasks({ large, small }) {
  return [
    {
      heading: "When sensitivity is right",
      text: [
        "Here the task changes layers 2 and 3, whose weights are large: there |weight × gradient| is large too.",
        "That is luck, not logic. The score says how much the loss depends on the weights as they are, not how " +
        "many directions of change a task needs.",
      ],
      question: {
        ask: "another task needs six directions in layer 4, whose weights are the smallest. How many ranks does " +
          "sensitivity give it?",
        options: ["1 or none", "2, as uniform", "3 or more"],
        answer: () => {
          const ranks = small.byRule("sensitivity").ranks, rank = ranks[3];
          return [rank < 2 ? 0 : rank === 2 ? 1 : 2, `By sensitivity the ranks are ${ranks.join(", ")}.`];
        },
      },
    },
    {
      heading: "When sensitivity is wrong",
      get text() {
        return [
          `This is the other task; choose between both above. By sensitivity the loss ends at ${
            lossText(lossOf(small, "sensitivity"))
          }, with uniform ranks at ${
            lossText(lossOf(small, "uniform"))
          }: small weights make a small score, however much the layer has to change.`,
          "Find ranks that beat both.",
        ];
      },
      question: {
        ask: "a third rule gives each rank to the direction with the largest squared gradient (captured). On which " +
          "task does it end clearly below uniform, by 3 % or more?",
        options: ["Both", "The first only", "The second only", "Neither"],
        answer: () => {
          const [first, second] = [large, small].map((tries) =>
            lossOf(tries, "captured") < CLEARLY * lossOf(tries, "uniform")
          );
          const right = first ? (second ? 0 : 1) : second ? 2 : 3;
          const words = [large, small].map((tries) =>
            `${lossText(lossOf(tries, "captured"))} against ${lossText(lossOf(tries, "uniform"))}`
          );
          return [right, `Captured against uniform: ${words.join(" on the first task, ")} on the second.`];
        },
      },
    },
    {
      heading: "No rule replaces a comparison",
      get text() {
        return [
          `Captured gives ${ranksOf(large, "captured")} on the first task and ${
            ranksOf(small, "captured")
          } on the second. The gradient of the first step says where training starts to move, not where it ends.`,
          "So compare on held-out data, with the same budget and the same batches, before you trust a rule: " +
          "that is what “Train both” in the workbench and tlora.race do. Change the seed and see whether your " +
          "conclusion stays.",
        ];
      },
    },
  ];
}
