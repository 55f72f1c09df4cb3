// What the directions of a module read: values of tokens, and the tokens at both ends of a direction.

import { largest } from "../colors.js";

/** Values of one module from its bytes: `row(n)` those of all tokens, `need` the last row if there is one. */
export function unpack({ module, directions, scales, values }, hasNeed) {
  if (!values) return { module };
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0)), width = bytes.length / scales.length;
  const row = (n) => Array.from(bytes.subarray(n * width, (n + 1) * width), (v) => v * scales[n]);
  return { module, directions, row, need: hasNeed ? row(scales.length - 1) : null };
}

/**
 * The tokens of all samples: the part of each, where samples begin and end, and which are the same token (by text and
 * part, constant ones also by the token before).
 */
export function readTokens({ texts, text, part, sample }) {
  const parts = [...part].map(Number), spans = [], isFirst = sample.map((s, i) => s !== sample[i - 1]);
  sample.forEach((s, i) => {
    if (isFirst[i]) spans[s] = [i, i];
    spans[s][1] = i + 1;
  });
  const before = (i) => (parts[i] === 0 && !isFirst[i] ? text[i - 1] : "");
  const group = text.map((t, i) => `${parts[i]} ${t} ${before(i)}`), all = {};
  for (const name of group) all[name] = (all[name] ?? 0) + 1;
  return {
    part: parts,
    spans,
    group,
    all,
    text: (i) => texts[text[i]],
    before: (i, most) => text.slice(Math.max(spans[sample[i]][0], i - most), i).map((t) => texts[t]).join(""),
  };
}

/**
 * One end of a direction: distinct tokens beyond half of its peak and a fifth of the other end's, the furthest first.
 *
 * @returns {{at: number, hits: number, all: number}[]} Where each is furthest, how often it is there, and of how many.
 */
export function ends(values, sign, tokens) {
  const far = values.map((value) => sign * value), peak = far.reduce((a, b) => Math.max(a, b));
  const limit = Math.max(peak / 2, largest(values) / 5), found = {};
  far.forEach((value, i) => {
    if (value < limit) return;
    const hit = found[tokens.group[i]] ??= { at: i, hits: 0, all: tokens.all[tokens.group[i]] };
    hit.hits++;
    if (value > far[hit.at]) hit.at = i;
  });
  return Object.values(found).sort((a, b) => far[b.at] - far[a.at]);
}
