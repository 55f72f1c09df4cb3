"""The best learning rate of each method on each task, from all searches that the stores hold."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.lr_search import flat_range
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, directions, pilot, study

STORES = {
    "comparison": comparison.STORE,
    "pilot": pilot.STORE,
    "study": study.STORE,
    "directions": directions.STORE,
}
NEAR = 0.01
"""Part of the lowest loss by which that of another rate may be higher and count as near it."""
TRAINING = ("model", "steps", "batch_size")
ARM = ["study", "task", "method", "rank"]


@cache
def best_rates() -> pd.DataFrame:
    """Return one row per study, task, method and rank.

    Returns
    -------
    pandas.DataFrame
        ``study``, ``task``, ``method`` and ``rank``; ``best``, the rate with the lowest mean loss on validation rows;
        ``lowest`` and ``highest``, the ends of the range around it in which losses are within `NEAR` of the lowest;
        ``edge``, the ends of the grid that this range reaches; ``model``, ``steps`` and ``batch_size``.
    """
    searched = pd.concat([Comparison.read(path).flatness(NEAR).assign(study=name) for name, path in STORES.items()])
    table = pd.concat([searched.dropna(subset="best"), directions_rates()])
    trained = [newest_keys()[pair] for pair in zip(table["study"], table["task"], strict=True)]
    table = table.assign(**{part: [key[part] for key in trained] for part in TRAINING})
    return table[[*ARM, "best", "lowest", "highest", "edge", *TRAINING]].reset_index(drop=True)


@cache
def newest_keys() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the key of the newest run on each task, by study and task: its model, data and training."""
    records = ((name, record) for name, path in STORES.items() for record in Store(path).read())
    return {(name, record["key"]["task"]): record["key"] for name, record in records}


def directions_rates() -> pd.DataFrame:
    """Return the best rates of the study of directions, whose arms all ran at the same four multiples of R."""
    rows = []
    for task, data in directions.TASKS.items():
        for name, arm in directions.ARMS.items():
            losses = directions.losses_by_share(task, name)
            if losses is not None:
                rates = np.array(losses.columns) * directions.known_rate(data)
                near = flat_range(dict(zip(rates, -losses.mean(), strict=True)), NEAR)
                rows.append({"study": "directions", "task": task, "method": arm.name, "rank": arm.rank, **near})
    return pd.DataFrame(rows)
