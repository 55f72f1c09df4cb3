// What the directions of a module read: values of tokens, and the tokens at both ends of a direction.

import { largest } from "../colors.js";

/**
 * What the kernel sends of a module: values as bytes in base64, a row for each kind and direction, and the scale of
 * each row; of one that reads no tokens its number alone. Of an `expert` they are the values of the tokens that are
 * `routed` to it, with means over its directions by kind: shares on constant tokens, and agreement.
 *
 * @typedef {{module: number, expert?: number, directions?: number, scales?: number[], values?: string,
 *   routed?: number[], constant?: (number | null)[], agreement?: (number | null)[]}} Reading
 */

/**
 * Values of one module: `row(n)` those of all tokens, and how much each token needs the module, if that is known. They
 * are 0 at tokens that are not routed to an expert.
 *
 * @typedef {{module: number, expert?: number, routed: Set<number> | null, directions: number,
 *   row: (n: number) => number[], need: number[] | null}} Values
 */

/** @typedef {{texts: string[], text: number[], part: string, sample: number[]}} Side Tokens, as they are sent. */
/** @typedef {ReturnType<typeof readTokens>} Tokens */

/**
 * Values of one module from its bytes, of which the last row may be the need; one without values has no directions.
 *
 * @type {(reading: Reading, hasNeed: boolean, count?: number) => Values}
 */
export function unpack({ module, expert, routed, directions = 0, scales = [], values = "" }, hasNeed, count = 0) {
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0)), width = bytes.length / scales.length;
  /** @type {(n: number) => number[]} */
  const read = (n) => Array.from(bytes.subarray(n * width, (n + 1) * width), (v) => v * scales[n]);
  /** @type {(n: number) => number[]} */
  function row(n) {
    if (!routed) return read(n);
    const all = Array(count).fill(0);
    read(n).forEach((value, i) => all[routed[i]] = value);
    return all;
  }
  const need = hasNeed && values ? row(scales.length - 1) : null;
  return { module, expert, routed: routed ? new Set(routed) : null, directions, row, need };
}

/**
 * The tokens that an expert reads, of all: how often each occurs among them.
 *
 * @type {(tokens: Tokens, routed: Set<number> | null) => Tokens}
 */
export function readByExpert(tokens, routed) {
  if (!routed) return tokens;
  /** @type {Record<string, number>} */
  const all = {};
  for (const i of routed) all[tokens.group[i]] = (all[tokens.group[i]] ?? 0) + 1;
  return { ...tokens, all };
}

/**
 * The tokens of all samples: the part of each, where samples begin and end, and which are the same token (by text and
 * part, constant ones also by the token before).
 *
 * @param {Side} side
 */
export function readTokens({ texts, text, part, sample }) {
  const parts = [...part].map(Number), isFirst = sample.map((s, i) => s !== sample[i - 1]);
  /** @type {[number, number][]} */
  const spans = [];
  sample.forEach((s, i) => {
    if (isFirst[i]) spans[s] = [i, i];
    spans[s][1] = i + 1;
  });
  /** @type {(i: number) => number | string} */
  const before = (i) => (parts[i] === 0 && !isFirst[i] ? text[i - 1] : "");
  const group = text.map((t, i) => `${parts[i]} ${t} ${before(i)}`);
  /** @type {Record<string, number>} */
  const all = {};
  for (const name of group) all[name] = (all[name] ?? 0) + 1;
  return {
    part: parts,
    spans,
    group,
    all,
    /** @type {(i: number) => string} */
    text: (i) => texts[text[i]],
    /** @type {(i: number, most: number) => string} */
    before: (i, most) => text.slice(Math.max(spans[sample[i]][0], i - most), i).map((t) => texts[t]).join(""),
  };
}

/** @typedef {{at: number, hits: number, all: number}} End Where a token is furthest, how often beyond, of how many. */

/**
 * One end of a direction: distinct tokens beyond half of its peak and a fifth of the other end's, the furthest first.
 *
 * @param {number[]} values
 * @param {number} sign
 * @param {Pick<Tokens, "group" | "all">} tokens
 * @returns {End[]}
 */
export function ends(values, sign, tokens) {
  const far = values.map((value) => sign * value), peak = far.reduce((a, b) => Math.max(a, b));
  const limit = Math.max(peak / 2, largest(values) / 5);
  /** @type {Record<string, End>} */
  const found = {};
  far.forEach((value, i) => {
    if (value < limit) return;
    const hit = found[tokens.group[i]] ??= { at: i, hits: 0, all: tokens.all[tokens.group[i]] };
    hit.hits++;
    if (value > far[hit.at]) hit.at = i;
  });
  return Object.values(found).sort((a, b) => far[b.at] - far[a.at]);
}
