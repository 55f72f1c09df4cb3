"""Share an integer budget in proportion to weights, exactly: no models, no tensors, no rounding error."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Level = tuple[list[int], int, int]
"""Integer weights ``w`` and a level ``t / d``: ``w[i] * t / d`` is the ideal number of units of i."""


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers in exactly the ratio of the given finite, non-negative floats.

    Every float is an integer over a power of two, so that the largest denominator serves all of them.
    """
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    common = max(denominator for _, denominator in ratios)
    return [numerator * (common // denominator) for numerator, denominator in ratios]


def apportion(
    weights: Sequence[float],
    budget: int,
    low: Sequence[int],
    high: Sequence[int],
    costs: Sequence[int] | None = None,
) -> list[int]:
    """Units for each member, in proportion to weights and within limits, as much as a budget pays for.

    The ideal is ``clip(level * weights, low, high)``, with the one level at which it costs just the budget:
    what a ceiling cuts off goes to the others in proportion, what a floor adds is taken from them likewise.
    Ideals are rounded down; then the member that is furthest below its ideal gets one more unit, again and
    again, while one that is not at its ceiling can be paid for. At a cost of one each this is
    largest-remainder rounding, and the budget is met exactly. Ties go to whoever comes first.

    Parameters
    ----------
    weights : sequence of float
        Finite and not negative. Where only zeros are left to take what ceilings cut off, they share evenly.
    budget : int
        What all units may cost together.
    low, high : sequence of int
        Least and most units of each member.
    costs : sequence of int, optional
        Cost of one unit of each member, 1 by default.

    Returns
    -------
    list of int
        Units, in the order of ``weights``. Their cost is the budget less a rest, which is smaller than the
        cost of one unit of any member below its ceiling.

    Raises
    ------
    ValueError
        If the floors alone cost more than the budget.
    """
    costs = [1] * len(weights) if costs is None else costs
    if (least := total_cost(low, costs)) > budget:
        raise ValueError(f"the floors cost {least}, more than the budget of {budget}: lower them")
    budget = min(budget, total_cost(high, costs))
    full = [ceil if weight else floor for weight, floor, ceil in zip(weights, low, high, strict=True)]
    if total_cost(full, costs) <= budget:  # whoever has a weight is full: the zeros share what is left evenly
        low, weights = full, [1.0] * len(weights)
    level = _level(integer_weights(weights), budget, low, high, costs)
    units = [
        min(max(weight * level[1] // level[2], floor), ceiling)
        for weight, floor, ceiling in zip(level[0], low, high, strict=True)
    ]
    _spend(units, budget - total_cost(units, costs), level, high, costs)
    return units


def total_cost(units: Sequence[int], costs: Sequence[int]) -> int:
    """What units cost together."""
    return sum(count * cost for count, cost in zip(units, costs, strict=True))


def _level(weights: list[int], budget: int, low: Sequence[int], high: Sequence[int], costs: Sequence[int]) -> Level:
    """The level at which the clipped ideals cost exactly the budget; the limits must allow it.

    Members beyond a limit at a trial level are settled there, those above their ceilings where the trial
    level is too low and those below their floors where it is too high: the true level, which lies on the
    far side, leaves them where they are. At most as many rounds as members, in practice a handful.
    """
    free, rest = list(range(len(weights))), budget
    while True:
        scale = sum(weights[i] * costs[i] for i in free)
        cut = {i: excess for i in free if (excess := weights[i] * rest - high[i] * scale) > 0}
        raised = {i: lack for i in free if (lack := low[i] * scale - weights[i] * rest) > 0}
        surplus = sum(cut[i] * costs[i] for i in cut) - sum(raised[i] * costs[i] for i in raised)
        if surplus == 0:
            return weights, rest, scale
        settled, limit = (cut, high) if surplus > 0 else (raised, low)
        rest -= sum(limit[i] * costs[i] for i in settled)
        free = [i for i in free if i not in settled]


def _spend(units: list[int], rest: int, level: Level, high: Sequence[int], costs: Sequence[int]) -> None:
    """Hand out the rest, in place, unit by unit, to whoever is furthest below the ideal and affordable."""
    weights, numerator, denominator = level
    queue = [(units[i] * denominator - weights[i] * numerator, i) for i in range(len(units)) if units[i] < high[i]]
    heapq.heapify(queue)
    while queue and rest:
        gap, i = heapq.heappop(queue)
        if costs[i] > rest:  # the rest only shrinks: never affordable again
            continue
        units[i] += 1
        rest -= costs[i]
        if units[i] < high[i]:
            heapq.heappush(queue, (gap + denominator, i))
