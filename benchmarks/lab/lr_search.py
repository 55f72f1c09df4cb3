"""The search for a learning rate: a log grid, extended until the best rate is not at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.lab.summary import CONDITION

EXTENSIONS = 8
"""Most rates that are added to a grid: at a factor of two, that is 256."""

Curve = dict[float, float]
"""Score of each learning rate on the validation split: the negative loss, so that higher is better."""


def search_rates(score_at: Callable[[float], float], grid: Iterable[float], earlier: Iterable[float] = ()) -> Curve:
    """Score each rate of the grid, and more rates until the best is not at an edge.

    Parameters
    ----------
    score_at : callable
        From a learning rate to a score: minus infinity if training diverged, NaN if it failed.
    grid : iterable of float
        At least two rates, each the same factor above the one before.
    earlier : iterable of float
        Rates of earlier searches, perhaps from other grids: they are scored too, and do not extend this grid.

    Returns
    -------
    dict of float
        Score by rate. If `next_rate` of it is not None, the search was given up.
    """
    scores = {rate: score_at(rate) for rate in parse_grid(grid)}
    for _ in range(EXTENSIONS):
        rate = next_rate(scores)
        if rate is None:
            break
        scores[rate] = score_at(rate)
    return scores | {rate: score_at(rate) for rate in earlier if rate not in scores}


def parse_grid(grid: float | Iterable[float]) -> list[float]:
    """The rates in ascending order.

    Raises
    ------
    ValueError
        If there are none, or one is not positive and finite.
    """
    rates = sorted({float(rate) for rate in (grid if isinstance(grid, Iterable) else [grid])})
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"learning_rates={rates}: pass one for all methods, or a grid such as 5e-4, 1e-3 and 2e-3")
    return rates


def scale_grid(grid: Iterable[float], factor: float) -> list[float]:
    """The grid for a method whose optimizer multiplies its rate."""
    return [_round_rate(factor * rate) if factor != 1 else rate for rate in grid]


def best_rate(scores: Mapping[float, float]) -> float | None:
    """The rate with the highest score, the lowest of equals; None if all failed."""
    finite = {rate: score for rate, score in sorted(scores.items()) if math.isfinite(score)}
    return max(finite, key=finite.__getitem__, default=None)


def next_rate(scores: Mapping[float, float]) -> float | None:
    """The next rate beyond the edge at which the best rate is; None if the best is inside the grid.

    If all rates diverged, the search goes lower. If all failed (NaN), other rates would fail too.
    """
    if all(map(math.isnan, scores.values())):
        return None
    rates, best = sorted(scores), best_rate(scores)
    if best is None or best == rates[0]:
        return _round_rate(rates[0] * rates[0] / rates[1])
    if best == rates[-1]:
        return _round_rate(rates[-1] * rates[-1] / rates[-2])
    return None


def _round_rate(rate: float) -> float:
    """Three digits, so that a rate is the same number whichever way the grid was extended to it."""
    return float(f"{rate:.3g}")


def rate_score(status: str, loss: float) -> float:
    """The score of one run, by which learning rates are chosen."""
    return {"done": -loss, "failed": np.nan}.get(status, -np.inf)


def searches(runs: pd.DataFrame) -> Iterable[tuple[tuple[Any, ...], list[Curve]]]:
    """The searches of each condition.

    Parameters
    ----------
    runs : pandas.DataFrame
        As in `Comparison`.

    Yields
    ------
    tuple
        Task, model, method and rank; and the curve of the first seed, followed by those of other seeds that have all
        of its rates.
    """
    for condition, rows in runs[runs["split"] == "validation"].groupby(list(CONDITION), sort=False):
        by_seed: dict[int, Curve] = {}
        for row in rows.itertuples():
            by_seed.setdefault(row.seed, {})[row.learning_rate] = rate_score(row.status, row.loss)
        first = next(iter(by_seed.values()))
        complete = [curve for curve in by_seed.values() if first.keys() <= curve.keys()]
        yield condition, [{rate: curve[rate] for rate in first} for curve in complete]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves with the same rates; not finite where a run of any of them failed or diverged."""
    return {rate: float(np.mean([curve[rate] for curve in curves])) for rate in curves[0]}


def flat_range(curve: Mapping[float, float], share: float) -> dict[str, Any]:
    """The last columns of `Comparison.flatness`."""
    best = best_rate(curve)
    if best is None:
        return {"best": np.nan, "lowest": np.nan, "highest": np.nan, "doublings": np.nan, "edge": ""}
    grid, top = sorted(curve), curve[best]
    is_near = [curve[rate] >= top - share * abs(top) for rate in grid]
    low = high = grid.index(best)
    while low and is_near[low - 1]:
        low -= 1
    while high + 1 < len(grid) and is_near[high + 1]:
        high += 1
    edges = [name for name, at_edge in (("low", low == 0), ("high", high == len(grid) - 1)) if at_edge]
    return {
        "best": best,
        "lowest": grid[low],
        "highest": grid[high],
        "doublings": float(np.log2(grid[high] / grid[low])),
        "edge": " and ".join(edges),
    }
