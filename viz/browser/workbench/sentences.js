// What the workbench says of a module, of the allocation, and of what changed.

import { prices } from "../allocate.js";
import { largest } from "../colors.js";
import { placeOf, sum } from "../modules.js";
import { capitalized, number, percent, signedWhole, sizeText, whole } from "../text.js";
import { change, value } from "./values.js";

/** @import { About, Current, Tab, Values } from "../traits.js" */
/** @import { Bench } from "./workbench.js" */

/**
 * A share of the whole: its text, the `part` of the bar that is filled, from 0 to 1, and a note.
 *
 * @typedef {{label: string, text: string, part: number, note?: string, mean?: number}} Share
 */

/** @type {Record<string, string>} */
const REASONS = {
  score: "by its score",
  captured: "by the gradient that its directions capture",
  uniform: "the same for all",
  ceiling: "the most allowed",
  floor: "the least allowed",
};
const SHOWN_ELSEWHERE = ["sensitivity", "rank", "change", "scaling"]; // tabs whose values have a line of their own

/** @type {(bench: Bench, k: number) => string} */
export const reasonOf = ({ current }, k) => REASONS[current.reasons[k]] ?? current.reasons[k];

/** @type {(bench: Bench, k: number) => string} */
const kept = (bench, k) => (change(bench, k) ? ` (kept: ${bench.current.kept[k]})` : "");

/**
 * The rank of a module and what decided it.
 *
 * @type {(bench: Bench, k: number) => string}
 */
export function brief(bench, k) {
  const rank = bench.current.ranks[k];
  if (!rank) return `Left out: no adapter${kept(bench, k)}`;
  return `Rank ${rank}${kept(bench, k)}, ${reasonOf(bench, k)}`;
}

/**
 * The reason of a rank, with its numbers.
 *
 * @type {(bench: Bench, k: number) => string}
 */
export function why(bench, k) {
  const { current } = bench, rank = current.ranks[k], reason = current.reasons[k];
  const score = scoreText(bench, k);
  const instead = rank === current.rank ? `${rank}, the nominal rank` : `${rank} instead of ${current.rank}`;
  if (!rank) return `Left out: no adapter${score && `, ${score}`}.`;
  const ideal = current.ideals[k], asks = ideal === null ? "" : `, which asks for ${number(ideal)}`;
  const lead = current.is_captured ? REASONS.captured : score, range = rangeText(bench, k);
  const byRule = `${lead}: ${instead}${range}; at most ${current.most[k]}`;
  /** @type {Record<string, string>} */
  const sentences = {
    score: byRule,
    captured: byRule,
    uniform: `The same for every adapted module, whatever its score${score && ` (${score})`}`,
    ceiling: `${lead}${asks}: ${rank} is the most allowed${range}`,
    floor: `${lead}${asks}: ${rank} is the least allowed${range}`,
    "by hand": `Set by hand to ${instead}${score && `; ${score}`}`,
  };
  const sentence = sentences[reason] ?? `${reason}: ${instead}`;
  return `${capitalized(sentence)}.`;
}

/** @type {(bench: Bench, name: string) => Tab | undefined} */
const tabOf = ({ about }, name) => about.tabs.find((tab) => tab.name === name);

/** @type {(bench: Bench, k: number) => string} */
function scoreText(bench, k) {
  const { values: scores = [] } = tabOf(bench, "sensitivity") ?? {}, score = scores[k] ?? null;
  const middle = sum(scores.map((score) => score ?? 0)) / scores.length;
  return score === null || !middle ? "" : `sensitivity ${number(score / middle)} \u00d7 the mean`;
}

/**
 * The ranks that the module gets on other samples.
 *
 * @type {(bench: Bench, k: number) => string}
 */
function rangeText({ model }, k) {
  const counts = model.get("resampled")?.[k] ?? [];
  if (!counts.length) return "";
  return `; ${[...new Set([counts[0][0], counts[counts.length - 1][0]])].join(" to ")} on other samples`;
}

/**
 * What the rank of a module is compared with: the kept rank if it changed, else the nominal one.
 *
 * @type {(bench: Bench, k: number) => string}
 */
export function insteadOf(bench, k) {
  const { current } = bench;
  if (change(bench, k)) return `kept: ${current.kept[k]}`;
  return current.ranks[k] === current.rank ? "the nominal rank" : `instead of ${current.rank}`;
}

/**
 * The shares of a module: of all scores and of the budget, compared with the largest of a module, and those that its
 * rank holds.
 *
 * @type {(bench: Bench, k: number) => Share[]}
 */
export function sharesOf(bench, k) {
  const { about, current } = bench, { values, low, high } = tabOf(bench, "sensitivity") ?? {};
  const ends = [low?.[k] ?? null, high?.[k] ?? null].filter((end) => end !== null).map(percent);
  const price = prices(about, current.controls.budget), budget = current.rank * sum(price);
  const spent = price.map((cost, i) => (cost * current.ranks[i]) / budget);
  /** @type {Share[]} */
  const shares = [{ label: "of the budget", ...compared(spent, k) }];
  if (values?.[k] !== undefined && values[k] !== null) {
    const share = compared(values, k), interval = ends.length ? `95\u00a0% interval ${ends.join(" to ")}; ` : "";
    shares.unshift({ label: "of all scores", ...share, note: interval + share.note });
  }
  for (const tab of about.tabs) {
    const part = tab.curves ? value(bench, tab, k) : null;
    if (part !== null) shares.push({ label: tab.unit, text: percent(part), part });
  }
  return shares;
}

/** @type {(shares: Values, k: number) => {text: string, part: number, note: string, mean: number}} */
function compared(shares, k) {
  const share = shares[k] ?? 0, all = shares.map((share) => share ?? 0), most = largest(all);
  const mean = sum(all) / all.length;
  const note = `full: the most, ${percent(most)}; tick: the mean, ${percent(mean)}`;
  return { text: percent(share), part: share / most, note, mean: mean / most };
}

/**
 * What else is known of a module, a line each.
 *
 * @type {(bench: Bench, k: number) => string[]}
 */
export function factsOf(bench, k) {
  const { about, current } = bench, lines = [], count = about.experts[k];
  if (count > 1) {
    const ranks = current.experts?.[k] ?? [], least = Math.min(...ranks), most = Math.max(...ranks);
    const said = least < most
      ? `The mean of ${count} experts, which have ranks ${least} to ${most}; PEFT holds ${most} for all`
      : `One rank for all ${count} experts of the parameter`;
    lines.push(`${said}; shares and curves are means over them`);
  }
  const scaling = current.scalings[k];
  if (current.ranks[k] && scaling !== null) {
    const isByScore = current.controls.scaling === "nominal" && scaling !== 1;
    lines.push(`Scaling ${number(scaling)}${isByScore ? ", by the score, whatever the rank" : ""}`);
  }
  for (const tab of about.tabs) {
    const v = value(bench, tab, k);
    if (SHOWN_ELSEWHERE.includes(tab.name) || tab.curves || v === null) continue;
    lines.push(`${["percent", "signed"].includes(tab.kind) ? percent(v) : number(v)} ${tab.unit}`);
  }
  return lines;
}

/**
 * The range of the ranks, and what the budget pays for.
 *
 * @type {(bench: Bench) => string}
 */
export function headline({ about, current }) {
  const adapted = current.ranks.filter((rank) => rank), low = Math.min(...adapted), high = Math.max(...adapted);
  const top = current.ranks.flatMap((rank, k) => (rank === high ? [k] : [])), unit = current.controls.budget;
  const price = prices(about, unit);
  const spent = sum(price.map((cost, k) => cost * current.ranks[k])), budget = current.rank * sum(price);
  const which = adapted.length < about.names.length ? "that is adapted " : "";
  const most = top.length > 1 ? `${top.length} modules` : placeOf(about, top[0]);
  const ranks = low === high
    ? `Every module ${which}gets rank ${high}`
    : `Ranks from ${low} to ${high} instead of ${current.rank} everywhere; most to ${most}`;
  const [trained] = sizes(about, current.ranks, false), [byLora] = sizes(about, ranksOfLora(current), true);
  return `${ranks}. ${whole(spent)} of ${whole(budget)} ${unit === "ranks" ? unit : "trainable parameters"}; ` +
    `with A frozen, ${percent(trained / byLora)} of the parameters that LoRA of rank ${current.rank} trains.`;
}

/**
 * The range of the ranks in a few words, and what it is compared with.
 *
 * @type {(bench: Bench) => {number: string, note: string}}
 */
export function rangeOf({ about, current }) {
  const adapted = current.ranks.filter((rank) => rank), low = Math.min(...adapted), high = Math.max(...adapted);
  if (low < high) return { number: `${low} to ${high}`, note: `instead of ${current.rank} everywhere` };
  const all = about.names.length, count = adapted.length;
  return { number: String(high), note: count < all ? `in ${count} of ${all} modules` : "everywhere" };
}

/**
 * How many modules changed since the allocation was kept, by how much, and which most; empty if none did.
 *
 * @type {(bench: Bench) => string}
 */
export function changes(bench) {
  const { about, current } = bench;
  /** @type {(k: number) => number} */
  const by = (k) => change(bench, k);
  const moved = about.names.flatMap((_, k) => (by(k) ? [k] : [])).sort((a, b) => Math.abs(by(b)) - Math.abs(by(a)));
  if (!moved.length) return "";
  const adapted = current.ranks.filter((rank, k) => rank || current.kept[k]).length;
  const ranks = moved.map((k) => by(k) * about.experts[k]), outs = prices(about, "parameters");
  const more = sum(ranks.map((count) => Math.max(0, count))), fewer = -sum(ranks.map((count) => Math.min(0, count)));
  const grown = sum(moved.map((k) => by(k) * outs[k]));
  const reason = grown && more === fewer ? " (a rank costs more in modules with more outputs)" : "";
  const most = moved.slice(0, 3).map((k) => `${signedWhole(by(k))} ${placeOf(about, k)}`).join(", ");
  return `Since it was kept: ${moved.length} of ${adapted} modules changed, ${whole(more)} ranks more and ${
    whole(fewer)
  } fewer, ` +
    `${signedWhole(grown)} trainable parameters${reason}; most: ${most}. ` +
    "Only training tells whether that is better: tlora race.";
}

/**
 * Rows of costs: of the kept and the new allocation, A frozen, their ratio, and those of plain LoRA.
 *
 * @type {(bench: Bench) => string[][]}
 */
export function costs({ about, current }) {
  const held = current.stored ?? current;
  const kept = sizes(about, held.kept, false), now = sizes(about, held.ranks, false);
  const lora = sizes(about, ranksOfLora(current), true);
  const names = ["trainable parameters", "adapter, float32", "AdamW states, float32"];
  if (about.peak) names.push("peak memory of training");
  return names.map((name, i) => {
    const text = i ? sizeText : whole;
    return [name, text(kept[i]), text(now[i]), percent(now[i] / kept[i]), text(lora[i])];
  });
}

/** @type {(current: Current) => number[]} */
const ranksOfLora = ({ ranks, rank }) => ranks.map(() => rank);

/**
 * Trained parameters, and bytes of the adapter, of AdamW's two states, and of the peak, with a gradient too.
 *
 * @type {(about: About, ranks: number[], trainsA: boolean) => number[]}
 */
function sizes({ outs, ins, experts, peak }, ranks, trainsA) {
  const b = sum(ranks.map((rank, k) => rank * experts[k] * outs[k]));
  const a = sum(ranks.map((rank, k) => rank * experts[k] * ins[k]));
  const trained = trainsA ? a + b : b, adapter = 4 * (a + b);
  return [trained, adapter, 8 * trained, (peak?.[Number(trainsA)] ?? 0) + adapter + 12 * trained];
}

/**
 * What to do if most modules have the highest rank allowed, so that scores decide little.
 *
 * @type {(bench: Bench) => string}
 */
export function warning({ current }) {
  const adapted = current.ranks.filter((rank) => rank).length;
  const full = current.ranks.filter((rank, k) => rank && rank === current.most[k]).length;
  if (2 * full < adapted) return "";
  const decides = current.is_captured ? "gradient decides" : "scores decide";
  return `${full} of ${adapted} modules have the highest rank allowed, so the ${decides} little: ` +
    "lower the rank, or raise max_rank, and with it that of tlora.task_subspaces.";
}
