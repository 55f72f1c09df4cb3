"""The search for a learning rate: a log grid that is widened until its best rate is not at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real

WIDENINGS = 8
"""Most rates that are added to a grid: at a factor of two, that is 256."""


Score = tuple[float, ...]
"""What a rate reached: its value, and what decides among rates of the same value; higher is better."""


def search(
    score_at: Callable[[float], Score], grid: Iterable[float], tried: Iterable[float] = ()
) -> dict[float, Score]:
    """Score at each rate of the grid, and of as many more as it takes for the best not to be at an edge.

    Parameters
    ----------
    score_at : callable
        From a learning rate to a score, whose value is minus infinity where training diverged, NaN where it failed.
    grid : iterable of float
        At least two rates; from one to the next by about the same factor.
    tried : iterable of float
        Those of earlier searches, from other grids perhaps, which are scored too and widen this one no further.

    Returns
    -------
    dict of tuple
        Score by rate. Where `beyond` of it is not None, the search was given up.

    Raises
    ------
    ValueError
        If there are fewer than two rates, or one is not positive.
    """
    scores = {rate: score_at(rate) for rate in checked_grid(grid)}
    for _ in range(WIDENINGS):
        rate = beyond(scores)
        if rate is None:
            break
        scores[rate] = score_at(rate)
    return scores | {rate: score_at(rate) for rate in tried if rate not in scores}


def checked_grid(grid: Iterable[float]) -> list[float]:
    """The rates, rising.

    Raises
    ------
    ValueError
        As `search`.
    """
    rates = list(grid) if isinstance(grid, Iterable) else [grid]
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, Real) or not (rate > 0 and math.isfinite(rate)):
            raise ValueError(f"learning rate {rate!r}: pass positive numbers")
    rates = sorted({float(rate) for rate in rates})
    if len(rates) < 2:
        raise ValueError(f"learning_rates={rates}: a search takes at least two, e.g. 5e-4, 1e-3 and 2e-3")
    return rates


def scaled(grid: Iterable[float], factor: float) -> list[float]:
    """The grid for a method that multiplies its rate."""
    return [_rounded(factor * rate) if factor != 1 else rate for rate in grid]


def best(scores: Mapping[float, Score]) -> float | None:
    """The rate with the highest score: the middle one of equals; None where all failed."""
    finite = _finite(scores)
    if not finite:
        return None
    top = max(finite.values())
    equals = sorted(rate for rate, score in finite.items() if score == top)
    return equals[len(equals) // 2]


def beyond(scores: Mapping[float, Score]) -> float | None:
    """The rate that follows on the edge at which the best is; None where the best is inside.

    Where all diverged, or several came to the same value and none to another, there is nothing to go by: lower then,
    for it is at high rates that training diverges, or comes to what guessing gives. Where not one answer is right at
    any rate, what decides among equals is gone by. What fails at every rate (NaN) fails at others too.
    """
    if all(math.isnan(value) for value, *_ in scores.values()):
        return None
    rates, top, reached = sorted(scores), best(scores), _finite(scores).values()
    values = {value for value, *_ in reached}
    guessed = len(reached) > 1 and ((len(values) == 1 and values != {0.0}) or len(set(reached)) == 1)
    if top is None or top == rates[0] or guessed:
        return _rounded(rates[0] * rates[0] / rates[1])
    if top == rates[-1]:
        return _rounded(rates[-1] * rates[-1] / rates[-2])
    return None


def _finite(scores: Mapping[float, Score]) -> dict[float, Score]:
    return {rate: score for rate, score in scores.items() if math.isfinite(score[0])}


def _rounded(rate: float) -> float:
    """Three digits, so that a rate is the same number whichever way the grid was widened to it."""
    return float(f"{rate:.3g}")
