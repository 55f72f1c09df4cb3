// What modules contributed to an answer and what leaving them out costs, in nats: of the whole answer, or of one token.

import { membersOf } from "../../grid.js";
import { placeOf, sum } from "../../modules.js";

/** @import { Modules } from "../../grid.js" */
/** @import { Progress } from "../../traits.js" */

/**
 * What the reader looks at: the sample and which token of it (null: all), the measure, and `ranks`, what is left of the
 * modules that are switched off or cut.
 *
 * @typedef {{sample: number, token: number | null, measure: number, ranks: Record<number, number>}} Choice
 */

/**
 * What is known of an answer without some modules: scores of its tokens by measure, whether their first choices are the
 * same, and from a kernel these choices and what the model then answers.
 *
 * @typedef {{values: number[][], unchanged: (boolean | number)[], choices?: string[], answer?: string,
 *   bar?: Progress}} Answer
 */

/**
 * A request with its answer, of which `positions` are the tokens. By measure and token: scores of the base and of the
 * adapter, and the contributions of the modules. First choices and answers are those of the base and of the adapter.
 *
 * @typedef {object} Sample
 * @property {string} prompt
 * @property {string[]} tokens
 * @property {number[]} positions
 * @property {number[][]} base
 * @property {number[][]} adapter
 * @property {number[][][]} modules
 * @property {Record<string, Answer>} switched
 * @property {string[][]} choices
 * @property {string[]} generated
 */

/**
 * What the panel is drawn from; with a kernel it is `live`. What the reader chose and learned outlives the panel.
 *
 * @typedef {Modules & {names: string[], ranks: number[], samples: Sample[], live: boolean, choice?: Choice,
 *   known?: Known}} Part
 */

/** @typedef {Record<string, Partial<Answer>>} Known What the kernel has answered, by sample and key. */
/** @typedef {{part: Part, sample: Sample, choice: Choice, known: Known}} State */

/**
 * Modules that are switched off or cut, in ascending order.
 *
 * @type {(state: Pick<State, "choice">) => number[]}
 */
export const changedModules = ({ choice }) => Object.keys(choice.ranks).map(Number);

/**
 * The changed modules with their ranks, as a name.
 *
 * @type {(state: Pick<State, "choice">) => string}
 */
export const switchKey = (panel) => changedModules(panel).map((k) => `${k}:${panel.choice.ranks[k]}`).join();

/**
 * What is known of the answer without the changed modules; the kernel adds what the model then writes.
 *
 * @type {(state: State, key: string) => Answer | undefined}
 */
export function answerNow({ sample, choice, known }, key) {
  const stored = sample.switched[key], added = known[`${choice.sample} ${key}`];
  return stored || added ? /** @type {Answer} */ ({ ...stored, ...added }) : undefined;
}

/**
 * Whether it is known what leaving a module out alone costs.
 *
 * @type {(state: State, k: number) => boolean}
 */
export const isMeasured = ({ part, sample }, k) => part.live || `${k}:0` in sample.switched;

/** @type {(state: State, values: number[]) => number} */
const overTokens = ({ choice }, values) => (choice.token === null ? sum(values) : values[choice.token]);

/**
 * What each token gained by the adapter.
 *
 * @type {(state: State, measure: number) => number[]}
 */
export const gains = ({ sample }, measure) => sample.adapter[measure].map((v, i) => v - sample.base[measure][i]);

/** @type {(state: State, measure: number) => number} */
export const gained = (panel, measure) => overTokens(panel, gains(panel, measure));

/** @type {(state: State, k: number, measure: number) => number} */
export const contribution = (panel, k, measure) =>
  overTokens(panel, panel.sample.modules[measure].map((token) => token[k]));

/** @type {(state: State, now: Pick<Answer, "values">, measure: number) => number} */
export const cost = (panel, now, measure) =>
  overTokens(panel, panel.sample.adapter[measure].map((v, i) => v - now.values[measure][i]));

/** @type {(part: Part, k: number) => boolean} */
export const isOutside = (part, k) => part.columns[part.column[k]] < 0;

/**
 * Where a module is; one outside of the layers has its full name.
 *
 * @type {(part: Part, k: number) => string}
 */
export const moduleName = (part, k) => (isOutside(part, k) ? part.names[k] : placeOf(part, k));

/**
 * Modules as one name, if they are a row or a column.
 *
 * @type {(part: Part, modules: number[]) => string}
 */
export function nameOf(part, modules) {
  if (modules.length === 1) return moduleName(part, modules[0]);
  /** @type {(which: "row" | "column") => boolean} */
  const isWhole = (which) => membersOf(part, which, part[which][modules[0]]).join() === modules.join();
  if (isWhole("row")) return `${part.rows[part.row[modules[0]]]} of all layers`;
  if (isWhole("column")) return `layer ${part.columns[part.column[modules[0]]]}`;
  return `${modules.length} modules`;
}
