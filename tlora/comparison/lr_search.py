"""The search for a learning rate: a log grid that is widened until its best rate is not at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from tlora.comparison.summary import PLACE

WIDENINGS = 8
"""Most rates that are added to a grid: at a factor of two, that is 256."""


Curve = dict[float, float]
"""What each learning rate came to on the validation split: its loss, negative, so that higher is better."""


def search(score_at: Callable[[float], float], grid: Iterable[float], tried: Iterable[float] = ()) -> Curve:
    """Score each rate of the grid, and more rates until the best is not at an edge.

    Parameters
    ----------
    score_at : callable
        From a learning rate to a score: minus infinity where training diverged, NaN where it failed.
    grid : iterable of float
        At least two rates, from one to the next by about the same factor.
    tried : iterable of float
        Rates of earlier searches, perhaps from other grids: they are scored too, and do not widen this one.

    Returns
    -------
    dict of float
        Score by rate. If `beyond` of it is not None, the search was given up.

    Raises
    ------
    ValueError
        If there are none, or one is not positive.
    """
    scores = {rate: score_at(rate) for rate in checked_grid(grid)}
    for _ in range(WIDENINGS):
        rate = beyond(scores)
        if rate is None:
            break
        scores[rate] = score_at(rate)
    return scores | {rate: score_at(rate) for rate in tried if rate not in scores}


def checked_grid(grid: float | Iterable[float]) -> list[float]:
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
    if not rates:
        raise ValueError(
            "learning_rates is empty: pass one for all, or some to begin a search with, e.g. 5e-4, 1e-3 and 2e-3"
        )
    return sorted({float(rate) for rate in rates})


def scaled(grid: Iterable[float], factor: float) -> list[float]:
    """The grid for a method that multiplies its rate."""
    return [_rounded(factor * rate) if factor != 1 else rate for rate in grid]


def best(scores: Mapping[float, float]) -> float | None:
    """The rate with the highest score, the lowest of equals; None where all failed."""
    finite = {rate: score for rate, score in sorted(scores.items()) if math.isfinite(score)}
    return max(finite, key=finite.__getitem__, default=None)


def beyond(scores: Mapping[float, float]) -> float | None:
    """The next rate beyond the edge at which the best is; None if the best is inside.

    Where all rates diverged the search goes lower. What fails at every rate (NaN) would fail at others too.
    """
    if all(map(math.isnan, scores.values())):
        return None
    rates, top = sorted(scores), best(scores)
    if top is None or top == rates[0]:
        return _rounded(rates[0] * rates[0] / rates[1])
    if top == rates[-1]:
        return _rounded(rates[-1] * rates[-1] / rates[-2])
    return None


def _rounded(rate: float) -> float:
    """Three digits, so that a rate is the same number whichever way the grid was widened to it."""
    return float(f"{rate:.3g}")


def score(status: str, loss: float) -> float:
    """What a learning rate is chosen by."""
    return {"done": -loss, "failed": np.nan}.get(status, -np.inf)


def searches(runs: pd.DataFrame) -> Iterable[tuple[tuple[Any, ...], list[Curve]]]:
    """The searches of each place.

    Parameters
    ----------
    runs : pandas.DataFrame
        As in `tlora.Comparison`.

    Yields
    ------
    tuple
        Task, model, rank and method, and the curve of the first seed, followed by those of other seeds that have all
        of its rates.
    """
    for place, rows in runs[runs["split"] == "validation"].groupby(list(PLACE), sort=False):
        found: dict[int, Curve] = {}
        for row in rows.itertuples():
            found.setdefault(row.seed, {})[row.learning_rate] = score(row.status, row.loss)
        first = next(iter(found.values()))
        yield place, [{rate: curve[rate] for rate in first} for curve in found.values() if first.keys() <= curve.keys()]


def averaged(curves: Sequence[Curve]) -> Curve:
    """The mean of curves with the same rates, not finite where training failed or diverged in any of them."""
    return {rate: float(np.mean([curve[rate] for curve in curves])) for rate in curves[0]}


def flat_range(curve: Mapping[float, float], share: float) -> dict[str, Any]:
    """The last columns of `tlora.Comparison.flatness`."""
    top = best(curve)
    if top is None:
        return {"best": np.nan, "lowest": np.nan, "highest": np.nan, "doublings": np.nan, "edge": ""}
    grid, most = sorted(curve), curve[top]
    enough = [curve[rate] >= most - share * abs(most) for rate in grid]
    low = high = grid.index(top)
    while low and enough[low - 1]:
        low -= 1
    while high + 1 < len(grid) and enough[high + 1]:
        high += 1
    ends = {"lowest": grid[low], "highest": grid[high], "doublings": float(np.log2(grid[high] / grid[low]))}
    reached = [name for name, there in (("low", low == 0), ("high", high == len(grid) - 1)) if there]
    return {"best": top, **ends, "edge": " and ".join(reached)}
