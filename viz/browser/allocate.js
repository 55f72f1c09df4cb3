export function refuse() {
  throw new RangeError("the limits cannot be met");
}
export const total = (units, costs) => units.reduce((sum, count, i) => sum + count * costs[i], 0);
function integers(values) { // numerators of float64 values over a common power of two
  const bits = values.map((value) => new DataView(new Float64Array([value]).buffer).getBigUint64(0, true));
  const powers = bits.map((b) => Math.max(1, Number(b >> 52n))),
    least = Math.min(...powers.filter((_, i) => values[i]), 2046);
  return {
    least,
    numerators: bits.map((
      b,
      i,
    ) => (values[i] ? ((b & 0xfffffffffffffn) | (b >> 52n ? 1n << 52n : 0n)) << BigInt(powers[i] - least) : 0n)),
  };
}

function exactSum(values) { // rounded once, as by math.fsum
  const { least, numerators } = integers(values);
  return Number(numerators.reduce((a, b) => a + b, 0n)) * 2 ** (least - 1075);
}

const roundEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
// In proportion to weights, within limits, by largest remainders: tlora/numerics/apportionment.py.
function apportion(weights, budget, low, high, costs = weights.map(() => 1)) {
  if (total(low, costs) > budget) refuse();
  budget = Math.min(budget, total(high, costs));
  const full = weights.map((weight, i) => (weight ? high[i] : low[i]));
  if (total(full, costs) <= budget) [low, weights] = [full, weights.map(() => 1)];
  const { numerators } = integers(weights),
    [floor, ceiling, cost] = [low, high, costs].map((column) => column.map(BigInt));
  const sum = (members, of) => members.reduce((all, i) => all + of(i), 0n);
  let free = [...weights.keys()], rest = BigInt(budget), scale;
  for (;;) { // the level at which the clipped ideals cost exactly the budget
    scale = sum(free, (i) => numerators[i] * cost[i]);
    const beyond = (limit) => (i) => numerators[i] * rest - limit[i] * scale,
      over = beyond(ceiling),
      under = beyond(floor);
    const cut = free.filter((i) => over(i) > 0n), raised = free.filter((i) => under(i) < 0n);
    const surplus = sum(cut, (i) => over(i) * cost[i]) + sum(raised, (i) => under(i) * cost[i]);
    if (!surplus) break;
    const [fixed, limit] = surplus > 0n ? [new Set(cut), ceiling] : [new Set(raised), floor];
    rest -= sum([...fixed], (i) => limit[i] * cost[i]);
    free = free.filter((i) => !fixed.has(i));
  }
  const units = numerators.map((numerator, i) =>
    Math.min(Math.max(Number((numerator * rest) / scale), low[i]), high[i])
  );
  const lack = (i) => BigInt(units[i]) * scale - numerators[i] * rest, lacks = units.map((_, i) => lack(i));
  for (let left = budget - total(units, costs);;) { // one more to the one furthest below its ideal, the first if several are
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

// To the units that gain most for their cost, within limits; ties go to the fewest units, then to the first: `apportion_captured` there.
function apportionByGain(gains, budget, low, high, costs) {
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

// Ranks and scalings of a rule: scores, limits, options of `tlora.allocate`, ranks by hand and modules that are left out.
export function allocate(rule, about) {
  const { rank, edits, scores, temperature } = rule,
    kept = scores.flatMap((_, k) => (rule.excluded.includes(k) ? [] : [k]));
  const price = rule.budget === "ranks" ? scores.map(() => 1) : about.outs,
    budget = rank * price.reduce((a, b) => a + b, 0);
  const [costs, floors, ceilings] = [price, rule.floors, rule.ceilings].map((column) => kept.map((k) => column[k]));
  const low = kept.map((k, i) => edits[k] ?? floors[i]), high = kept.map((k, i) => edits[k] ?? ceilings[i]);
  if (!kept.some((k) => scores[k]) || low.some((least, i) => least > ceilings[i])) refuse();
  if (total(low, costs) > budget || budget - total(high, costs) >= Math.max(...costs)) refuse();
  const powers = kept.map((k) => scores[k] ** temperature), weights = rule.adapt_ranks ? powers : kept.map(() => 1);
  const energies = rule.energies && kept.map((k) => rule.energies[k]), known = energies?.map((one) => one.length);
  const shares = energies
    ? apportionByGain(energies, budget, low, high, costs)
    : apportion(weights, budget, low, high, costs);
  const alpha = rule.alpha ?? rank,
    sum = exactSum(powers),
    cost = exactSum(weights.map((weight, i) => weight * costs[i]));
  const asked = energies
    ? apportionByGain(energies, budget, kept.map(() => 0), known, costs)
    : weights.map((weight) => (budget * weight) / cost);
  const alphas = powers.map((
    power,
  ) => (rule.adapt_scales ? Math.max(alpha, roundEven((alpha * powers.length * power) / sum)) : alpha));
  const found = {
    rank,
    ranks: scores.map(() => 0),
    scalings: scores.map(() => null),
    ideals: scores.map(() => null),
    most: scores.map(() => 0),
    reasons: scores.map(() => "left out"),
  };
  kept.forEach((k, i) => {
    found.most[k] = high[i];
    if (!shares[i]) return;
    const isOpen = energies && asked[i] === known[i] && known[i] < Math.min(about.outs[k], about.ins[k]); // it takes all that is known
    const ideal = isOpen ? Infinity : asked[i],
      byRule = energies ? "captured" : temperature && rule.adapt_ranks ? "score" : "uniform";
    found.ranks[k] = shares[i];
    found.ideals[k] = isOpen ? null : ideal;
    found.scalings[k] = alphas[i] / (rule.scaling === "allocated" ? shares[i] : rank);
    found.reasons[k] = k in edits
      ? "by hand"
      : shares[i] === high[i] && high[i] < ideal
      ? "ceiling"
      : shares[i] === low[i] && low[i] > ideal
      ? "floor"
      : byRule;
  });
  return { ...found, middles: { rank, scaling: alpha / rank } };
}
