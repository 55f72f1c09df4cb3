"""Share an integer budget: in proportion to weights, exactly, or by what each further unit gains."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

Level = tuple[list[int], int, int]
"""Integer weights ``w`` and a level ``t / d``: ``w[i] * t / d`` is the ideal number of units of i."""


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Integers in exactly the ratio of the given finite, non-negative floats.

    Every float is an integer over a power of two, so the largest denominator is common to all.
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
    """Apportion a budget of units in proportion to weights, within limits.

    The ideal is ``clip(level * weights, low, high)``, at the level that costs exactly the budget: units above a
    ceiling go to the others in proportion, and units that a floor adds are taken from them likewise.
    Ideals are rounded down. Then the member furthest below its ideal gets one more unit, repeatedly, as long as the
    budget pays for a member below its ceiling. With unit costs this is largest-remainder rounding, and the budget is
    met exactly. Ties go to the first member.

    Parameters
    ----------
    weights : sequence of float
        Finite and not negative. If all members with a weight are at their ceilings, those without share evenly.
    budget : int
        Upper bound on the total cost.
    low, high : sequence of int
        Least and most units of each member.
    costs : sequence of int, optional
        Cost of one unit of each member, 1 by default.

    Returns
    -------
    list of int
        Units, in the order of ``weights``. The unspent rest of the budget is less than the cost of one unit of any
        member below its ceiling.
    """
    costs = [1] * len(weights) if costs is None else costs
    if (least := total_cost(low, costs)) > budget:
        raise ValueError(f"the floors cost {least}, more than the budget of {budget}: lower them")
    budget = min(budget, total_cost(high, costs))
    full = [ceil if weight else floor for weight, floor, ceil in zip(weights, low, high, strict=True)]
    if total_cost(full, costs) <= budget:  # all members with a weight are full: the others share the rest evenly
        low, weights = full, [1.0] * len(weights)
    level = _level(integer_weights(weights), budget, low, high, costs)
    units = [
        min(max(weight * level[1] // level[2], floor), ceiling)
        for weight, floor, ceiling in zip(level[0], low, high, strict=True)
    ]
    numbers, numerator, denominator = level
    _spend(units, budget, high, costs, lambda i: units[i] * denominator - numbers[i] * numerator)
    return units


def apportion_captured(
    gains: Sequence[Sequence[float]],
    budget: int,
    low: Sequence[int],
    high: Sequence[int],
    costs: Sequence[int] | None = None,
) -> list[int]:
    """Spend a budget on the units that gain most for their cost, within limits.

    Every member gets its floor. Then the next unit goes to the member that gains most by it for its cost, repeatedly,
    as long as the budget pays for a member below its ceiling. With unit costs no other choice gains more in all, and
    the budget is met exactly. Ties go to the member with the fewest units, then to the first.

    ``gains`` are what the first, second, ... unit of each member gains: not negative, descending, at least up to its
    ceiling. The rest is as for `apportion`, and so is what comes back.
    """
    prices, units = [1] * len(gains) if costs is None else costs, list(low)
    _spend(units, budget, high, prices, lambda i: (-gains[i][units[i]] / prices[i], units[i]))
    return units


def total_cost(units: Sequence[int], costs: Sequence[int]) -> int:
    """Total cost of units."""
    return sum(count * cost for count, cost in zip(units, costs, strict=True))


def _level(weights: list[int], budget: int, low: Sequence[int], high: Sequence[int], costs: Sequence[int]) -> Level:
    """The level at which the clipped ideals cost exactly the budget; the limits must allow it.

    Each round fixes members at a limit: those above their ceilings if the trial level is too low, those below their
    floors if it is too high. The true level is further on that side, so they stay there. There are at most as many
    rounds as members, in practice a handful.
    """
    free, rest = list(range(len(weights))), budget
    while True:
        scale = sum(weights[i] * costs[i] for i in free)
        cut = {i: excess for i in free if (excess := weights[i] * rest - high[i] * scale) > 0}
        raised = {i: lack for i in free if (lack := low[i] * scale - weights[i] * rest) > 0}
        surplus = sum(cut[i] * costs[i] for i in cut) - sum(raised[i] * costs[i] for i in raised)
        if surplus == 0:
            return weights, rest, scale
        fixed, limit = (cut, high) if surplus > 0 else (raised, low)
        rest -= sum(limit[i] * costs[i] for i in fixed)
        free = [i for i in free if i not in fixed]


def _spend(
    units: list[int], budget: int, high: Sequence[int], costs: Sequence[int], priority: Callable[[int], Any]
) -> None:
    """Spend the rest of the budget, in place, unit by unit on the affordable member of the lowest ``priority``."""
    rest = budget - total_cost(units, costs)
    queue = [(priority(i), i) for i in range(len(units)) if units[i] < high[i]]
    heapq.heapify(queue)
    while queue and rest:
        _, i = heapq.heappop(queue)
        if costs[i] > rest:  # the rest only shrinks: never affordable again
            continue
        units[i] += 1
        rest -= costs[i]
        if units[i] < high[i]:
            heapq.heappush(queue, (priority(i), i))
