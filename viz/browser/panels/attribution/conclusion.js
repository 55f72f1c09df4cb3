// The finding of the panel: what the changed modules contributed, and what is lost without them.

import { sum } from "../../modules.js";
import { capitalized, quoted, unsignedNats } from "../../text.js";
import { changedModules, contribution, cost, gained, moduleName, nameOf } from "./contributions.js";

/** @import { Answer, Choice, State } from "./contributions.js" */

/**
 * The finding; of no changed module it is about the largest one whose cost is known.
 *
 * @type {(state: State, now: Answer | null | undefined) => string}
 */
export function conclude(panel, now) {
  const { part, choice } = panel, off = changedModules(panel);
  if (!off.length) return concludeLargest(panel);
  const subject = nameOf(part, off);
  if (!now) return `Leaving out ${subject} \u2026`;
  const tokens = now.unchanged.filter((same) => !same).length;
  const choices = tokens
    ? `The first choice changes at ${tokens} of ${now.unchanged.length} tokens.`
    : "No first choice changes.";
  return `${sentence(panel, `${subject} contributed`, actOf(choice, off), off, now)} ${choices}`;
}

/** @type {(choice: Choice, off: number[]) => string} */
function actOf({ ranks }, off) {
  const isCut = off.every((k) => ranks[k]);
  if (!isCut) return `leaving ${off.length > 1 ? "them" : "it"} out`;
  return off.length === 1 ? `cutting it to rank ${ranks[off[0]]}` : "cutting them";
}

/** @type {(state: State) => string} */
function concludeLargest(panel) {
  const { part, sample, choice } = panel;
  /** @type {(k: number) => number} */
  const size = (k) => Math.abs(contribution(panel, k, choice.measure));
  const order = part.names.map((_, k) => k).sort((a, b) => size(b) - size(a));
  const k = order.find((module) => `${module}:0` in sample.switched);
  if (k === undefined) return `The answer gained ${unsignedNats(gained(panel, choice.measure))} nats.`;
  const subject = `${moduleName(part, k)} contributed`;
  return sentence(panel, subject, "leaving it out alone", [k], sample.switched[`${k}:0`]);
}

/** @type {(state: State, subject: string, act: string, modules: number[], now: Answer) => string} */
function sentence(panel, subject, act, modules, now) {
  const { sample, choice } = panel;
  const token = choice.token === null ? null : sample.tokens[sample.positions[choice.token]];
  const of = token === null ? "" : ` of ${quoted(token.trim())}`;
  /** @type {(measure: number) => number} */
  const added = (measure) => sum(modules.map((k) => contribution(panel, k, measure)));
  /** @type {(measure: number) => string} */
  const share = (measure) => `${unsignedNats(added(measure))} of`;
  /** @type {(measure: number) => string} */
  const all = (measure) => unsignedNats(gained(panel, measure));
  const lost = cost(panel, now, 0), likelier = lost < -0.005 ? ", so the answer is likelier that way" : "";
  return `${capitalized(subject)} ${share(0)} the ${all(0)} nats${of}; ` +
    `${act} costs ${unsignedNats(lost)}${likelier}. ` +
    `In log-odds, which have no ceiling: ${share(1)} ${all(1)}, cost ${unsignedNats(cost(panel, now, 1))}.`;
}
