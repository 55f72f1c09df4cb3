"""Values by learning rate: the searches of a comparison, their means, and where these are flat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tlora import rates
from tlora.paired import PLACE

Curve = dict[float, rates.Score]
"""What each learning rate came to on the validation split."""


def score(status: str, value: float, loss: float) -> rates.Score:
    """What a learning rate is chosen by; see `tlora.rates`."""
    reached = {"done": float(value), "failed": np.nan}.get(status, -np.inf)
    return (reached, -np.inf if np.isnan(loss) else -float(loss))


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
            found.setdefault(row.seed, {})[row.learning_rate] = score(row.status, row.value, row.loss)
        first = next(iter(found.values()))
        yield place, [{rate: curve[rate] for rate in first} for curve in found.values() if first.keys() <= curve.keys()]


def averaged(curves: Sequence[Curve]) -> Curve:
    """The mean of curves with the same rates, not finite where training failed or diverged in any of them."""
    return {rate: tuple(np.mean([curve[rate] for curve in curves], axis=0).tolist()) for rate in curves[0]}


def flat_range(curve: Mapping[float, rates.Score], share: float) -> dict[str, Any]:
    """The last columns of `tlora.Comparison.flatness`."""
    top = rates.best(curve)
    if top is None:
        return {"best": np.nan, "lowest": np.nan, "highest": np.nan, "doublings": np.nan, "edge": ""}
    grid, most = sorted(curve), curve[top][0]
    enough = [curve[rate][0] >= most - share * abs(most) for rate in grid]
    low = high = grid.index(top)
    while low and enough[low - 1]:
        low -= 1
    while high + 1 < len(grid) and enough[high + 1]:
        high += 1
    ends = {"lowest": grid[low], "highest": grid[high], "doublings": float(np.log2(grid[high] / grid[low]))}
    reached = [name for name, there in (("low", low == 0), ("high", high == len(grid) - 1)) if there]
    return {"best": top, **ends, "edge": " and ".join(reached)}
