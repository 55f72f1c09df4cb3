// The text of scene 2, and what it trains.

import { lossText, number } from "../text.js";
import * as layers from "./layer.js";

/** @import { Layer, Method } from "./layer.js" */
/** @import { Step } from "./story.js" */

export const STEPS = 120, DEFAULT_RATE = 0.3;
export const RATES = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8];

/** @type {{method: Method, name: string, from: number}[]} A method is shown from a step of the text on. */
export const METHODS = [
  { method: "random", name: "B alone, random A", from: 0 },
  { method: "gradient", name: "B alone, A from the gradient", from: 1 },
  { method: "lora", name: "A and B (LoRA)", from: 3 },
  { method: "full", name: "full", from: 3 },
];
const NAMES = METHODS.map(({ name }) => name);
const TOLERATED = 1; // a training tolerates a rate if its loss is below that before training

/**
 * The steps, with answers for a layer.
 *
 * @param {Layer} layer
 * @returns {Step[]}
 */
export function trainingSteps(layer) {
  const floors = { random: layers.floorOf(layer.random, layer), gradient: layers.floorOf(layer.gradient, layer) };
  return [...stepsOfAFrozenA(layer, floors), ...stepsOfAllMethods(layer)];
}

/** @type {(layer: Layer, method: Method) => number} */
function tolerated(layer, method) {
  const losses = layers.lossesByRate(layer, method, RATES, STEPS);
  return RATES[losses.findLastIndex((loss) => loss < TOLERATED)];
}

/**
 * What B alone learns.
 *
 * @type {(layer: Layer, floors: {random: number, gradient: number}) => Step[]}
 */
function stepsOfAFrozenA(layer, floors) {
  return [
    {
      heading: "One layer, and a change of rank 2",
      text: [
        "A layer with 12 inputs and 8 outputs needs a change of its weight: the first map, a matrix of rank 2, " +
        "with entries above zero in red and below zero in blue. Before training the loss is 1, and the update B " +
        "A is zero: the second map.",
        "A is random and frozen, B is trained by gradient descent. Before you press Run, predict; the dashed " +
        "line is the lowest loss that any B can reach with this A.",
      ],
      question: {
        ask: "A reads 2 random directions of 12. How much of the loss is left?",
        options: ["Nearly nothing", "About a half", "More than two thirds"],
        answer: () => [
          floors.random > 2 / 3 ? 2 : floors.random > 0.25 ? 1 : 0,
          `No B gets below ${lossText(floors.random)}. What A does not read, B cannot change.`,
        ],
      },
    },
    {
      heading: "The right directions",
      text: [
        "Now the rows of A are the two leading directions of the loss’s gradient, which is known before " +
        "training. Their length is such that the inputs vary along them as along random rows.",
        "Run both. Drag the line of the chart back to see the update grow from zero.",
      ],
      question: {
        ask: "does B alone reach a loss of zero with the gradient’s directions?",
        options: [
          "Yes, the change has rank 2, and so has A",
          "No, but it gets below a half",
          "No, it stays above a half",
        ],
        answer: () => [
          floors.gradient < 0.01 ? 0 : floors.gradient < 0.5 ? 1 : 2,
          `It gets to ${
            lossText(floors.gradient)
          }: the gradient is the change times the inputs’ second moment, so it leans to inputs that are large.`,
        ],
      },
    },
    {
      heading: "A frozen A has a floor",
      text: [
        "Each dashed line is a floor: min over B of ½ mean ‖(B A − ΔW) x‖². More steps do not help, and neither " +
        "does another learning rate.",
        "LoRA trains A too. At first B is zero, so A gets no gradient: ∂L/∂A = Bᵀ G. It moves once B has grown.",
      ],
      question: {
        ask:
          `LoRA starts from the random A. After ${STEPS} steps at the same rate, is its loss below the floor of the ` +
          "gradient’s A?",
        options: ["Yes", "No"],
        answer: () => {
          const [loss] = layers.lossesByRate(layer, "lora", [DEFAULT_RATE], STEPS);
          return [
            loss < floors.gradient ? 0 : 1,
            `LoRA ends at ${lossText(loss)}, the floor is ${lossText(floors.gradient)}.`,
          ];
        },
      },
    },
  ];
}

/**
 * LoRA and full training, their rates, and what they store.
 *
 * @type {(layer: Layer) => Step[]}
 */
function stepsOfAllMethods(layer) {
  return [
    {
      heading: "LoRA turns A, full training has no A",
      text: [
        "Run all four at one rate. LoRA is slow at first, then turns A towards what the task needs. Full " +
        "training changes every entry of W.",
        "Move the learning rate up, start again, and see which training breaks first.",
      ],
      question: {
        ask: "which training tolerates the largest learning rate?",
        options: ["B alone, A frozen", "A and B (LoRA)", "full"],
        answer: () => {
          const limits = METHODS.map(({ method }) => tolerated(layer, method)), most = Math.max(...limits);
          const words = limits.map((limit, i) => `${NAMES[i]} ${number(limit)}`).join(", ");
          return [
            Math.max(0, limits.indexOf(most) - 1),
            `The largest rates after which the loss was lower than before: ${words}.`,
          ];
        },
      },
    },
    {
      heading: "How much learning rate each tolerates",
      text: [
        `Below are the losses after ${STEPS} steps at every rate; a line ends where the training diverges. Drag the ` +
        "rate: the curves above follow.",
        "With A frozen the loss is a quadratic function of B, as steep as the inputs along A are large. Full " +
        "training sees the largest inputs of all; LoRA gets steeper while A and B grow.",
      ],
      question: {
        ask: "to change B, a step needs of each token what B reads. How many numbers does B alone keep for a token?",
        options: ["12, the input", "2, what A reads of it", "14, both"],
        answer: () => {
          /** @type {(method: Method) => number} */
          const kept = (method) => layers.storedNumbers(method, layers.INPUTS, layers.OUTPUTS, layers.RANK).kept;
          return [1, `B alone keeps ${kept("random")}, LoRA ${kept("lora")}, full training ${kept("full")}.`];
        },
      },
    },
    {
      heading: "What freezing A saves",
      text: [
        "Choose a layer and a rank. B alone trains about half as many numbers as LoRA, and for each token it " +
        "keeps r numbers instead of the whole input.",
        "In a large model the kept inputs of all layers are most of what a step needs, unless they are computed " +
        "again (gradient checkpointing).",
      ],
    },
  ];
}
