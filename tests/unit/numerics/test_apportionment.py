"""Apportioning against an exact-fraction definition that works in another way."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tlora.numerics.apportionment import apportion, apportion_captured, integer_weights, total_cost

quick = settings(max_examples=100, deadline=None)
weight = st.one_of(st.integers(0, 20).map(float), st.floats(0, 1e6, width=32))


@st.composite
def problems(draw, costly):
    """Weights, budget, floors, ceilings and costs that can be met."""
    size = draw(st.integers(1, 8))
    weights = draw(st.lists(weight, min_size=size, max_size=size))
    low = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    high = [floor + draw(st.integers(0, 30)) for floor in low]
    costs = draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)) if costly else [1] * size
    budget = draw(st.integers(total_cost(low, costs), max(total_cost(low, costs), total_cost(high, costs))))
    return weights, budget, low, high, costs


def exact_ideals(weights, budget, low, high, costs):
    """clip(level * w, low, high) at the level that costs the budget, found along the kinks of the cost."""
    w = [Fraction(x) for x in weights]

    def ideals(level):
        return [min(max(level * x, lo), hi) for x, lo, hi in zip(w, low, high, strict=True)]

    def cost(level):
        return sum(x * c for x, c in zip(ideals(level), costs, strict=True))

    kinks = {Fraction(0)} | {Fraction(b) / x for x, *bs in zip(w, low, high, strict=True) if x for b in bs}
    kinks = sorted(kinks)
    for left, right in itertools.pairwise(kinks):
        if cost(left) <= budget <= cost(right):
            if cost(right) == cost(left):
                return ideals(left)
            return ideals(left + (right - left) * (budget - cost(left)) / (cost(right) - cost(left)))
    return None  # only zeros can take what is left, or nothing varies


def by_remainders(ideals, budget, high, costs):
    """Floors, then unit by unit to whoever lacks most and can be paid for, looked up afresh each time."""
    units = [int(x) for x in ideals]
    while True:
        rest = budget - total_cost(units, costs)
        fit = [i for i in range(len(units)) if units[i] < high[i] and costs[i] <= rest]
        if not fit:
            return units
        units[max(fit, key=lambda i: (ideals[i] - units[i], -i))] += 1


@quick
@given(problems(costly=False))
def test_equals_the_largest_remainders_of_exact_fractions(problem):
    weights, budget, low, high, costs = problem
    ideals = exact_ideals(*problem)
    assume(ideals is not None)
    units = apportion(weights, budget, low, high)
    assert units == by_remainders(ideals, budget, high, costs)
    assert sum(units) == budget
    assert all(abs(unit - ideal) < 1 for unit, ideal in zip(units, ideals, strict=True))


@quick
@given(problems(costly=True))
def test_spends_as_much_as_fits(problem):
    _, budget, low, high, costs = problem
    units = apportion(*problem)
    rest = budget - total_cost(units, costs)
    assert rest >= 0
    assert all(lo <= unit <= hi for lo, unit, hi in zip(low, units, high, strict=True))
    assert all(rest < cost or unit == hi for cost, unit, hi in zip(costs, units, high, strict=True))


@quick
@given(problems(costly=True))
def test_prices_are_paid_from_exact_ideals(problem):
    _, budget, low, high, costs = problem
    ideals = exact_ideals(*problem)
    assume(ideals is not None)
    units = apportion(*problem)
    # A clipped ideal hides how far below its floor a member is, which only matters for the last units.
    if all(ideal > lo for ideal, lo in zip(ideals, low, strict=True)):
        assert units == by_remainders(ideals, budget, high, costs)
    assert all(unit >= int(ideal) for unit, ideal in zip(units, ideals, strict=True))


@pytest.mark.parametrize(
    ("weights", "budget", "low", "high", "expected"),
    [
        ([1, 1, 1], 10, [1] * 3, [9] * 3, [4, 3, 3]),  # a tie: the first one
        ([1, 1, 1], 11, [1] * 3, [9] * 3, [4, 4, 3]),
        ([6, 3, 1], 20, [1] * 3, [8, 99, 99], [8, 9, 3]),  # 4 cut off, shared 3 : 1
        ([98, 1, 1], 10, [2] * 3, [99] * 3, [6, 2, 2]),  # floors are paid by the others
        ([8, 0, 0], 12, [1] * 3, [4] * 3, [4, 4, 4]),  # only zeros can take what is left
        ([8, 0, 0], 9, [1] * 3, [4] * 3, [4, 3, 2]),
        ([0, 0], 5, [1] * 2, [4] * 2, [3, 2]),
        ([0.1, 0.2, 0.3], 6, [0] * 3, [9] * 3, [1, 2, 3]),  # 0.1 + 0.2 > 0.3 in floats
        ([1e-300, 2e-300], 9, [1] * 2, [9] * 2, [3, 6]),
        ([5e-324, 1e300], 9, [1] * 2, [99] * 2, [1, 8]),
        ([1, 2], 100, [1, 1], [3, 4], [3, 4]),  # more budget than room
    ],
)
def test_known_cases(weights, budget, low, high, expected):
    assert apportion(weights, budget, low, high) == expected


@st.composite
def gain_problems(draw):
    """Descending gains with ties and zeros, and a budget, floors, ceilings and costs that can be met; small enough to
    try all allocations."""
    size = draw(st.integers(1, 4))
    low = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    high = [floor + draw(st.integers(0, 4)) for floor in low]
    gain = st.one_of(st.integers(0, 3).map(float), st.floats(0, 10, width=32))
    gains = [sorted(draw(st.lists(gain, min_size=most, max_size=most + 2)), reverse=True) for most in high]
    costs = draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    return gains, low, high, costs, draw(st.floats(0, 1))


@quick
@given(gain_problems())
def test_no_other_units_within_the_limits_gain_more(problem):
    gains, low, high, _, part = problem
    budget = sum(low) + round(part * (sum(high) - sum(low)))

    def gain(units):
        return sum(sum(map(Fraction, each[:count])) for each, count in zip(gains, units, strict=True))

    units = apportion_captured(gains, budget, low, high)
    choices = itertools.product(*(range(lo, hi + 1) for lo, hi in zip(low, high, strict=True)))
    assert gain(units) == max(gain(choice) for choice in choices if sum(choice) == budget)
    assert sum(units) == budget
    assert all(lo <= unit <= hi for lo, unit, hi in zip(low, units, high, strict=True))


@quick
@given(gain_problems())
def test_by_gain_spends_as_much_as_fits_on_what_gains_most_for_its_cost(problem):
    gains, low, high, costs, part = problem
    least, most = total_cost(low, costs), total_cost(high, costs)
    budget = least + round(part * (most - least))
    units = apportion_captured(gains, budget, low, high, costs)
    rest = budget - total_cost(units, costs)
    assert rest >= 0
    assert all(lo <= unit <= hi for lo, unit, hi in zip(low, units, high, strict=True))
    assert all(rest < cost or unit == hi for cost, unit, hi in zip(costs, units, high, strict=True))
    # A unit that was given gains no less for its cost than one that was not, unless that one was too expensive at last.
    for i, j in itertools.permutations(range(len(units)), 2):
        if units[i] > low[i] and units[j] < high[j] and costs[j] <= rest + costs[i]:
            given_up, wanted = gains[i][units[i] - 1] / costs[i], gains[j][units[j]] / costs[j]
            assert given_up >= wanted


@pytest.mark.parametrize(
    ("gains", "budget", "low", "high", "costs", "expected"),
    [
        ([[9, 4, 1], [5, 3, 2]], 4, [0, 0], [3, 3], None, [2, 2]),
        ([[9, 4, 1], [5, 3, 2]], 4, [0, 3], [3, 3], None, [1, 3]),
        ([[9, 4, 1], [5, 3, 2]], 4, [0, 0], [1, 3], None, [1, 3]),
        ([[9, 4, 1], [5, 3, 2]], 4, [0, 0], [3, 3], [4, 1], [0, 3]),  # 9 / 4 comes after 5 and 3, and is not paid
        ([[0, 0, 0], [0, 0, 0]], 3, [0, 0], [3, 3], None, [2, 1]),  # nothing to gain: evenly
    ],
)
def test_known_cases_by_gain(gains, budget, low, high, costs, expected):
    assert apportion_captured(gains, budget, low, high, costs) == expected


def test_floors_above_the_budget_are_refused():
    with pytest.raises(ValueError, match=r"6, .*budget of 5"):
        apportion([1, 2], 5, [3, 3], [9, 9])


def test_weights_keep_their_ratio():
    assert integer_weights([0.75, 3.0, 0.0]) == [3, 12, 0]
    a, b = integer_weights([0.1, 1e-12])
    assert Fraction(a, b) == Fraction(0.1) / Fraction(1e-12)
