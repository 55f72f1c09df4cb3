// The rule of `tlora.allocate` for the page without a kernel: integers are exact, as in Python.

/** @import { About, Values } from "./traits.js" */

/**
 * What decides an allocation: scores and `energies` along known directions (null by score), limits and `edits` by
 * module, options of `tlora.allocate`, and which modules are `excluded`. `code` has arguments as Python text, and
 * `changed` says whether the excluded modules are others than at first.
 *
 * @typedef {object} Rule
 * @property {number} rank
 * @property {number | null} alpha
 * @property {string} scaling
 * @property {string} budget
 * @property {boolean} adapt_ranks
 * @property {boolean} adapt_scales
 * @property {number} temperature
 * @property {number[]} scores
 * @property {number[][] | null} [energies]
 * @property {number[]} floors
 * @property {number[]} ceilings
 * @property {Record<number, number>} edits
 * @property {number[]} excluded
 * @property {Record<string, string>} [code]
 * @property {boolean} [changed]
 */

/** @typedef {Pick<About, "outs" | "ins" | "experts">} Sizes Outputs, inputs and number of experts of the modules. */

/**
 * @typedef {{rank: number, ranks: number[], scalings: Values, ideals: Values, most: number[], reasons: string[]}} Ranks
 */

/** @type {() => never} */
export function refuse() {
  throw new RangeError("the limits cannot be met");
}
/** @type {(units: number[], costs: number[]) => number} */
const total = (units, costs) => units.reduce((sum, count, i) => sum + count * costs[i], 0);

/**
 * Numerators of float64 values over a common power of two.
 *
 * @type {(values: number[]) => {least: number, numerators: bigint[]}}
 */
function integers(values) {
  const bits = values.map((value) => new DataView(new Float64Array([value]).buffer).getBigUint64(0, true));
  const powers = bits.map((b) => Math.max(1, Number(b >> 52n)));
  const least = Math.min(...powers.filter((_, i) => values[i]), 2046);
  /** @type {(b: bigint) => bigint} */
  const fraction = (b) => (b & 0xfffffffffffffn) | (b >> 52n ? 1n << 52n : 0n);
  return { least, numerators: bits.map((b, i) => (values[i] ? fraction(b) << BigInt(powers[i] - least) : 0n)) };
}

/**
 * The sum, rounded once, as by `math.fsum`.
 *
 * @type {(values: number[]) => number}
 */
function exactSum(values) {
  const { least, numerators } = integers(values);
  return Number(numerators.reduce((a, b) => a + b, 0n)) * 2 ** (least - 1075);
}

/** @type {(x: number) => number} */
const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/**
 * In proportion to weights, within limits, by largest remainders: `tlora/numerics/apportionment.py`.
 *
 * @type {(weights: number[], budget: number, low: number[], high: number[], costs?: number[]) => number[]}
 */
export function apportion(weights, budget, low, high, costs = ones(weights)) {
  if (total(low, costs) > budget) refuse();
  budget = Math.min(budget, total(high, costs));
  const full = weights.map((weight, i) => (weight ? high[i] : low[i]));
  if (total(full, costs) <= budget) [low, weights] = [full, ones(weights)];
  const { numerators } = integers(weights), { rest, scale } = level(numerators, budget, low, high, costs);
  /** @type {(i: number) => number} */
  const ideal = (i) => Number((numerators[i] * rest) / scale);
  const units = weights.map((_, i) => Math.min(Math.max(ideal(i), low[i]), high[i]));
  /** @type {(i: number) => bigint} */
  const lack = (i) => BigInt(units[i]) * scale - numerators[i] * rest;
  const lacks = units.map((_, i) => lack(i));
  // One more to the one furthest below its ideal, the first if several are.
  for (let left = budget - total(units, costs);;) {
    let next = -1;
    units.forEach((count, i) => {
      if (count < high[i] && costs[i] <= left && (next < 0 || lacks[i] < lacks[next])) next = i;
    });
    if (next < 0) return units;
    units[next]++;
    left -= costs[next];
    lacks[next] = lack(next);
  }
}

/**
 * The level, rest over scale, at which the ideals within the limits cost exactly the budget.
 *
 * @param {bigint[]} numerators
 * @param {number} budget
 * @param {number[]} low
 * @param {number[]} high
 * @param {number[]} costs
 */
function level(numerators, budget, low, high, costs) {
  /** @type {bigint[][]} */
  const [floor, ceiling, cost] = [low, high, costs].map((column) => column.map(BigInt));
  /** @type {(members: number[], of: (i: number) => bigint) => bigint} */
  const sum = (members, of) => members.reduce((all, i) => all + of(i), 0n);
  let free = [...numerators.keys()], rest = BigInt(budget);
  for (;;) {
    const scale = sum(free, (i) => numerators[i] * cost[i]);
    /** @type {(limit: bigint[], i: number) => bigint} */
    const beyond = (limit, i) => numerators[i] * rest - limit[i] * scale;
    const cut = free.filter((i) => beyond(ceiling, i) > 0n), raised = free.filter((i) => beyond(floor, i) < 0n);
    const surplus = sum(cut, (i) => beyond(ceiling, i) * cost[i]) + sum(raised, (i) => beyond(floor, i) * cost[i]);
    if (!surplus) return { rest, scale };
    const fixed = surplus > 0n ? cut : raised, limit = surplus > 0n ? ceiling : floor, isFixed = new Set(fixed);
    rest -= sum(fixed, (i) => limit[i] * cost[i]);
    free = free.filter((i) => !isFixed.has(i));
  }
}

/**
 * To the units that gain most for their cost, within limits; ties go to the fewest units, then to the first:
 * `apportion_captured` there.
 *
 * @type {(gains: number[][], budget: number, low: number[], high: number[], costs: number[]) => number[]}
 */
export function apportionByGain(gains, budget, low, high, costs) {
  const units = [...low], open = new Set(units.flatMap((count, i) => (count < high[i] ? [i] : [])));
  for (let rest = budget - total(units, costs); rest && open.size;) {
    let next = -1, most = -1;
    for (const i of open) {
      const gain = gains[i][units[i]] / costs[i];
      if (gain > most || (gain === most && units[i] < units[next])) [next, most] = [i, gain];
    }
    if (costs[next] <= rest) {
      units[next]++;
      rest -= costs[next];
      if (units[next] < high[next]) continue;
    }
    open.delete(next); // full, or never affordable again
  }
  return units;
}

/**
 * Ranks and scalings of a rule: scores, limits, options of `tlora.allocate`, ranks by hand and modules left out.
 *
 * @type {(rule: Rule, about: Sizes) => Ranks & {middles: Record<string, number>}}
 */
export function allocate(rule, about) {
  const { rank, edits, scores, temperature, energies } = rule;
  const kept = scores.flatMap((_, k) => (rule.excluded.includes(k) ? [] : [k]));
  const price = prices(about, rule.budget), budget = rank * total(price, ones(price));
  const [costs, floors, ceilings] = [price, rule.floors, rule.ceilings].map((column) => kept.map((k) => column[k]));
  const low = kept.map((k, i) => edits[k] ?? floors[i]), high = kept.map((k, i) => edits[k] ?? ceilings[i]);
  if (!kept.some((k) => scores[k]) || low.some((least, i) => least > ceilings[i])) refuse();
  if (total(low, costs) > budget || budget - total(high, costs) >= Math.max(...costs)) refuse();
  const powers = kept.map((k) => scores[k] ** temperature), weights = rule.adapt_ranks ? powers : ones(kept);
  const gains = energies && kept.map((k) => energies[k]);
  const shares = gains
    ? apportionByGain(gains, budget, low, high, costs)
    : apportion(weights, budget, low, high, costs);
  const ideals = gains ? idealsByGain(gains, budget, costs, kept, about) : idealsByScore(weights, budget, costs);
  const alpha = rule.alpha ?? rank, sum = exactSum(powers);
  /** @type {(power: number) => number} */
  const share = (power) => Math.max(alpha, roundEven((alpha * powers.length * power) / sum));
  const alphas = powers.map((power) => (rule.adapt_scales ? share(power) : alpha));
  const result = leftOut(rank, scores.length), byRule = nameOfRule(rule);
  kept.forEach((k, i) => {
    result.most[k] = high[i];
    if (!shares[i]) return;
    result.ranks[k] = shares[i];
    result.ideals[k] = ideals[i] === Infinity ? null : ideals[i];
    result.scalings[k] = alphas[i] / (rule.scaling === "allocated" ? shares[i] : rank);
    result.reasons[k] = k in edits ? "by hand" : limitOf(shares[i], low[i], high[i], ideals[i]) ?? byRule;
  });
  return { ...result, middles: { rank, scaling: alpha / rank } };
}

/**
 * What one rank of each module costs: 1, or its outputs if the budget counts parameters; of all its experts.
 *
 * @type {(about: Sizes, budget: unknown) => number[]}
 */
export const prices = ({ outs, experts }, budget) => outs.map((out, k) => experts[k] * (budget === "ranks" ? 1 : out));

/** @type {(values: unknown[]) => number[]} */
const ones = (values) => values.map(() => 1);

/** @type {(weights: number[], budget: number, costs: number[]) => number[]} */
const idealsByScore = (weights, budget, costs) => {
  const cost = exactSum(weights.map((weight, i) => weight * costs[i]));
  return weights.map((weight) => (budget * weight) / cost);
};

/**
 * What each module would get without limits; unknown, here infinite, if it takes all that is known of it.
 *
 * @type {(gains: number[][], budget: number, costs: number[], kept: number[], about: Sizes) => number[]}
 */
function idealsByGain(gains, budget, costs, kept, about) {
  const known = gains.map((gain) => gain.length);
  const asked = apportionByGain(gains, budget, gains.map(() => 0), known, costs);
  /** @type {(k: number) => number} */
  const full = (k) => Math.min(about.outs[k], about.ins[k]);
  return asked.map((units, i) => (units === known[i] && known[i] < full(kept[i]) ? Infinity : units));
}

/** @type {(share: number, low: number, high: number, ideal: number) => string | null} */
function limitOf(share, low, high, ideal) {
  if (share === high && high < ideal) return "ceiling";
  return share === low && low > ideal ? "floor" : null;
}

/** @type {(rule: Rule) => string} */
function nameOfRule({ energies, temperature, adapt_ranks }) {
  if (energies) return "captured";
  return temperature && adapt_ranks ? "score" : "uniform";
}

/**
 * An allocation that leaves all modules out.
 *
 * @type {(rank: number, count: number) => Ranks}
 */
function leftOut(rank, count) {
  /** @type {<T>(value: T) => T[]} */
  const all = (value) => Array(count).fill(value);
  return { rank, ranks: all(0), scalings: all(null), ideals: all(null), most: all(0), reasons: all("left out") };
}
