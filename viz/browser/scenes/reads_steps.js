// The text of scene 1.

import { percent } from "../text.js";
import { between, leadingAngles, makeInputs, measure, randomShares, sharesAt } from "./inputs.js";

/** @import { Angles, Inputs, Shares } from "./inputs.js" */
/** @import { Step } from "./story.js" */

/**
 * What the text tells numbers of: the inputs, their leading directions, and what a direction catches `at` an angle.
 *
 * @typedef {{seed: number, inputs: Inputs, angles: Angles, at: (angle: number) => Shares}} Facts
 */

/**
 * The steps, with answers for the inputs of a seed as they are at first.
 *
 * @param {number} seed
 * @returns {Step[]}
 */
export function readsSteps(seed) {
  const inputs = makeInputs(seed), found = measure(inputs), angles = leadingAngles(found);
  /** @type {Facts} */
  const facts = { seed, inputs, angles, at: (angle) => sharesAt(found, angle) };
  return [...stepsToTheWeight(facts), ...stepsToTheTask(facts)];
}

/** @type {(angle: number) => number} */
const degrees = (angle) => Math.round((180 * angle) / Math.PI);

/**
 * Which option is right: where the direction of W C lies as seen from the principal one.
 *
 * @type {(angles: Angles, stretched: number) => number}
 */
function turned(angles, stretched) {
  if (between(angles.wc, angles.principal) < 0.03) return 0;
  return between(angles.wc, stretched) < between(angles.principal, stretched) ? 1 : 2;
}

/**
 * What one number tells of the inputs and the outputs.
 *
 * @type {(facts: Facts) => Step[]}
 */
function stepsToTheWeight({ inputs, angles, at }) {
  return [
    {
      heading: "An adapter of rank 1 reads one number",
      text: [
        "Each dot is the input of one token. A of rank 1 is one direction a: the adapter gets a·x of each " +
        "input, and nothing else. The color of a dot is that number.",
        "Turn the line: drag it, or move the slider. The curve shows how much of the inputs’ variance the " +
        "number catches at each angle.",
      ],
      question: {
        ask: "which direction catches most of the inputs’ variance?",
        options: ["Along the cloud", "Across the cloud", "All the same"],
        answer: () => [
          0,
          `The principal direction, the first eigenvector of the covariance C, catches ${
            percent(at(angles.principal).input)
          }, the direction across it the rest.`,
        ],
      },
    },
    {
      heading: "The weight stretches what it reads",
      text: [
        "The second picture shows the outputs of the same tokens, W times their distance from the mean, in the " +
        "same colors. W doubles one direction of the inputs and halves the one across it. The line there is the " +
        "best guess of the output from the number alone.",
        "The principal direction is marked, and the random one that LoRA would start with. Turn the line to " +
        "each and watch how far the outputs lie from theirs.",
      ],
      question: {
        ask: "will the direction that tells most about the outputs be the principal one?",
        options: ["Yes, the same", "No, turned to what W stretches", "No, turned away from it"],
        answer: () => [
          turned(angles, inputs.stretched),
          `The leading direction of W C lies ${
            degrees(between(angles.wc, angles.principal))
          }° from the principal one, and ${degrees(between(angles.wc, inputs.stretched))}° from what W stretches.`,
        ],
      },
    },
    {
      heading: "W C: seen through the weight",
      text: [
        "TLoRA takes A from W C. The second curve is the share of the outputs’ variance that a·x explains; W C " +
        "lies between the principal direction and the peak of that curve, whose direction tlora calls wc_half.",
        "So far nothing has been said about the task: inputs and weight are the same, whatever the loss asks for.",
      ],
      question: {
        ask: "how much of the loss’s gradient does the direction of W C catch here?",
        options: ["Less than 40 %", "40 to 80 %", "More than 80 %"],
        answer: () => {
          const share = at(angles.wc).gradient;
          return [share < 0.4 ? 0 : share <= 0.8 ? 1 : 2, `It catches ${percent(share)} of the squared gradient.`];
        },
      },
    },
  ];
}

/**
 * What it tells of the gradient, the mean, and chance.
 *
 * @type {(facts: Facts) => Step[]}
 */
function stepsToTheTask({ seed, inputs, angles, at }) {
  return [
    {
      heading: "The gradient has a direction of its own",
      get text() {
        const { output, gradient } = at(angles.gradient);
        return [
          "G is the gradient of the loss in W. " +
          "With A frozen, a step of B can only follow the part of G that lies along a. " +
          `The third curve is that share: ${percent(gradient)} at the gradient’s direction.`,
          `That direction explains ${percent(output)} of the outputs’ variance, the one of W C ${
            percent(at(angles.wc).output)
          }. A task need not depend on what varies most.`,
        ];
      },
      question: {
        ask: "C subtracts the mean of the inputs. If it did not, where would the principal direction point?",
        options: ["The same way", "Towards the mean of the cloud", "Away from it, by 90°"],
        answer: () => {
          const { principal } = leadingAngles(measure(inputs, false)),
            mean = Math.atan2(inputs.mean[1], inputs.mean[0]);
          const turn = between(principal, angles.principal), far = between(principal, mean);
          return [far < turn ? 1 : 0, `It turns by ${degrees(turn)}°, to within ${degrees(far)}° of the mean.`];
        },
      },
    },
    {
      heading: "What centering does",
      text: [
        "Switch “Subtract the mean” off: the line now passes through the origin, and the principal direction " +
        "points at the mean, which is the same for all tokens and tells them apart in nothing.",
        "Drag the ring, the mean of the inputs, or use its sliders. With the mean subtracted, C and W C stay " +
        "where they are. The gradient does not: it depends on the inputs as they are.",
      ],
      question: {
        ask: "in two dimensions a random direction catches a half on average. In 576, as in SmolLM2-135M?",
        options: ["About 1/24, one by the root of 576", "About 1/576", "Still a half"],
        answer: () => {
          const shares = randomShares(seed, 576);
          return [1, `The mean of 200 is ${percent(shares.reduce((sum, share) => sum + share, 0) / shares.length)}.`];
        },
      },
    },
    {
      heading: "Why a random direction catches so little",
      text: [
        "The squared cosines of a direction with d axes at right angles sum to 1, so on average each gets 1/d. " +
        "Drag the line, or move the slider.",
        "A random A of rank 8 catches about 8 of 576 parts, 1.4 %. LoRA can start there since it trains A too; " +
        "if A stays frozen, its directions must be chosen.",
      ],
    },
  ];
}
