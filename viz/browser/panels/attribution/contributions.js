// What modules contributed to an answer and what leaving them out costs, in nats: of the whole answer, or of one token.

import { membersOf } from "../../grid.js";
import { placeOf, sum } from "../../modules.js";

/**
 * What the reader looks at: the sample and which token of it (null: all), the measure, and `ranks`, what is left of the
 * modules that are switched off or cut.
 *
 * @typedef {{sample: number, token: number | null, measure: number, ranks: Record<number, number>}} Choice
 */

/** Modules that are switched off or cut, in ascending order. */
export const changedModules = ({ choice }) => Object.keys(choice.ranks).map(Number);

/** The changed modules with their ranks, as a name. */
export const switchKey = (panel) => changedModules(panel).map((k) => `${k}:${panel.choice.ranks[k]}`).join();

/** What is known of the answer without the changed modules; the kernel adds what the model then writes. */
export function answerNow({ sample, choice, known }, key) {
  const stored = sample.switched[key], added = known[`${choice.sample} ${key}`];
  return stored || added ? { ...stored, ...added } : undefined;
}

/** Whether it is known what leaving a module out alone costs. */
export const isMeasured = ({ part, sample }, k) => part.live || `${k}:0` in sample.switched;

const overTokens = ({ choice }, values) => (choice.token === null ? sum(values) : values[choice.token]);

/** What each token gained by the adapter. */
export const gains = ({ sample }, measure) => sample.adapter[measure].map((v, i) => v - sample.base[measure][i]);

export const gained = (panel, measure) => overTokens(panel, gains(panel, measure));

export const contribution = (panel, k, measure) =>
  overTokens(panel, panel.sample.modules[measure].map((token) => token[k]));

export const cost = (panel, now, measure) =>
  overTokens(panel, panel.sample.adapter[measure].map((v, i) => v - now.values[measure][i]));

export const isOutside = (part, k) => part.columns[part.column[k]] < 0;

/** Where a module is; one outside of the layers has its full name. */
export const moduleName = (part, k) => (isOutside(part, k) ? part.names[k] : placeOf(part, k));

/** Modules as one name, if they are a row or a column. */
export function nameOf(part, modules) {
  if (modules.length === 1) return moduleName(part, modules[0]);
  const isWhole = (which) => membersOf(part, which, part[which][modules[0]]).join() === modules.join();
  if (isWhole("row")) return `${part.rows[part.row[modules[0]]]} of all layers`;
  if (isWhole("column")) return `layer ${part.columns[part.column[modules[0]]]}`;
  return `${modules.length} modules`;
}
