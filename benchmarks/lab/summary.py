"""Summaries of a comparison: means, and intervals of paired differences over seeds and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from tlora.comparison.interval import paired_interval

BaselineRank = Literal["same", "nearest"] | int
"""The rank of the baseline that a method is compared with."""
Grid = NDArray[np.float64]

LOWER_IS_BETTER = {"loss": "negative_loss"}
"""Metrics whose sign is changed, and their names after that."""

TRAINING = "training"
"""Name of the training loss by step among a run's outcomes."""

CONDITION = ("task", "model", "method", "rank")
"""What a learning rate is chosen for."""


class FinalRuns(NamedTuple):
    """The runs of one condition at its chosen rate: the outcome of each test sample, and training losses, by seed."""

    rows: pd.DataFrame
    outcomes: dict[int, Grid]
    training: dict[int, Grid]

    def grid(self, seeds: list[int]) -> Grid:
        """Outcomes, (seeds, samples)."""
        return np.array([self.outcomes[seed] for seed in seeds]) if seeds else np.empty((0, 0))

    @property
    def parameters(self) -> float:
        """Trained parameters."""
        return float(self.rows["trainable_parameters"].mean())


def summarize(
    runs: pd.DataFrame,
    outcomes: Mapping[str, Tensor],
    baseline: str | None,
    baseline_rank: BaselineRank,
    metric: str | None,
    confidence: float,
) -> pd.DataFrame:
    """One row a task, model, rank and method, for `Comparison.summary`."""
    _check_baseline(runs, baseline, baseline_rank)
    groups = runs.groupby(list(CONDITION), sort=False)
    finals = {condition: _final_runs(rows[rows["best_rate"]], outcomes, metric) for condition, rows in groups}
    table = []
    for condition, mine in finals.items():
        reference = _reference(finals, condition, baseline or "lora", baseline_rank)
        theirs = finals.get(reference)
        row = dict(zip(CONDITION, condition, strict=True)) | _value(mine, metric, confidence)
        row |= _difference(mine, theirs if reference != condition else None, confidence)
        row["baseline_rank"] = reference[3] if theirs is not None and reference != condition else np.nan
        row["seconds_to_baseline"] = _seconds_to(mine, theirs)
        table.append(row | _costs(mine, runs, condition))
    return pd.DataFrame(table)


def _check_baseline(runs: pd.DataFrame, baseline: str | None, baseline_rank: BaselineRank) -> None:
    methods = list(dict.fromkeys(runs["method"]))
    if baseline is not None and baseline not in methods:
        raise ValueError(f"baseline={baseline!r} was not compared: choose one of {', '.join(methods)}")
    ranks = sorted(set(runs.loc[runs["method"] == (baseline or "lora"), "rank"]))
    if baseline_rank not in ("same", "nearest", *ranks):
        raise ValueError(f"baseline_rank={baseline_rank!r}: choose 'same', 'nearest' or a rank of the baseline {ranks}")


def _final_runs(rows: pd.DataFrame, outcomes: Mapping[str, Tensor], metric: str | None) -> FinalRuns:
    by_seed, training = {}, {}
    for index, row in rows.iterrows():
        losses = outcomes.get(f"{index}.{TRAINING}")
        if losses is not None and len(losses):  # a run may diverge before it has logged any
            training[int(row["seed"])] = _running_mean(losses.double().numpy())
        name = metric or next((k for k, v in LOWER_IS_BETTER.items() if v == row["metric"]), row["metric"])
        values = outcomes.get(f"{index}.{name}")
        if values is not None:
            by_seed[int(row["seed"])] = values.double().numpy() * (-1 if name in LOWER_IS_BETTER else 1)
    return FinalRuns(rows, by_seed, training)


def _running_mean(losses: Grid) -> Grid:
    """The mean over the last tenth of all steps up to each step; infinite where there are fewer steps before."""
    width = math.ceil(len(losses) / 10)
    means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    return np.concatenate([np.full(width - 1, np.inf), means])


def _seconds_to(mine: FinalRuns, theirs: FinalRuns | None) -> float:
    """Mean time until the training loss equals the reference's at its end; NaN if a run never reaches it."""
    if theirs is None or not theirs.training or not mine.training:
        return np.nan
    aim = np.mean([losses[-1] for losses in theirs.training.values()])
    seconds = []
    for row in mine.rows.itertuples():
        losses = mine.training.get(row.seed, np.array([np.inf]))
        reached = np.flatnonzero(losses <= aim)
        share = (reached[0] + 1) / len(losses) if len(reached) else np.nan
        seconds.append(row.preparation_seconds + share * row.seconds)
    return float(np.mean(seconds))


def _reference(finals: Mapping[Any, FinalRuns], condition: Any, baseline: str, baseline_rank: BaselineRank) -> Any:
    """The condition of the baseline that a condition is compared with."""
    task, model, _, rank = condition
    candidates = [c for c in finals if c[:3] == (task, model, baseline) and finals[c].outcomes]
    if baseline_rank == "nearest" and candidates and finals[condition].outcomes:
        size = finals[condition].parameters
        return min(candidates, key=lambda c: abs(np.log(finals[c].parameters / size)))
    return (task, model, baseline, rank if isinstance(baseline_rank, str) else baseline_rank)


def _interval(values: Grid, confidence: float) -> tuple[float, float]:
    """The interval of a mean for other seeds and samples; one seed does not tell how far others would be."""
    if len(values) < 2:
        return math.nan, math.nan
    _, low, high = paired_interval(values, 1 - confidence)
    return low, high


def _value(mine: FinalRuns, metric: str | None, confidence: float) -> dict[str, Any]:
    values = mine.grid(sorted(mine.outcomes))
    low, high = _interval(values, confidence)
    return {
        "learning_rate": float(mine.rows["learning_rate"].mean()),  # all the same
        "seeds": len(mine.outcomes),
        "metric": LOWER_IS_BETTER[metric] if metric else next(iter(mine.rows["metric"]), ""),
        "value": float(values.mean()) if values.size else np.nan,
        "low": low,
        "high": high,
    }


def _difference(mine: FinalRuns, theirs: FinalRuns | None, confidence: float) -> dict[str, float]:
    seeds = sorted(mine.outcomes.keys() & theirs.outcomes.keys()) if theirs else []
    if not seeds or theirs is None:
        return dict.fromkeys(("difference", "difference_low", "difference_high"), np.nan)
    differences = mine.grid(seeds) - theirs.grid(seeds)
    low, high = _interval(differences, confidence)
    return {"difference": float(differences.mean()), "difference_low": low, "difference_high": high}


def _costs(mine: FinalRuns, runs: pd.DataFrame, condition: Any) -> dict[str, Any]:
    here = runs[(runs[list(CONDITION)] == list(condition)).all(axis=1)]
    means = {name: float(mine.rows[name].mean()) for name in ("seconds", "preparation_seconds", "forgetting")}
    counts = {status: int((here["status"] == status).sum()) for status in ("diverged", "failed")}
    return {"trainable_parameters": mine.parameters, "peak_bytes": mine.rows["peak_bytes"].max()} | means | counts
