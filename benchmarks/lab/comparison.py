"""Comparison: runs of several methods, their learning rates, and their results next to each other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.lab.lr_search import flat_range, mean_curve, rate_score, searches
from benchmarks.lab.store import Record, Store, key_text, unpack
from benchmarks.lab.summary import CONDITION, LOWER_IS_BETTER, BaselineRank, summarize

RUN = {"learning_rate", "seed", "split"}
"""The parts of a run's key in which runs of one condition differ."""
COSTS = ("trainable_parameters", "head_parameters", "seconds", "preparation_seconds", "peak_bytes", "forgetting")


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Runs of several methods, each at several learning rates, and at its best one with several seeds.

    Attributes
    ----------
    runs : pandas.DataFrame
        One row per run; see ``columns``.
    outcomes : dict of (N,) float32 tensor
        The outcome of each test sample, by ``"ROW.METRIC"``: the run's row in ``runs``, and a metric. Under
        ``"ROW.training"``, the loss of each training step.
    """

    runs: pd.DataFrame
    outcomes: dict[str, Tensor]

    columns: ClassVar[dict[str, str]] = {
        "method": "name of the method or recipe",
        "task": "name of the task",
        "model": "base model",
        "rank": "nominal rank",
        "learning_rate": "peak learning rate",
        "seed": "seed of the head, the adapter, the training samples and their order",
        "split": "split that was evaluated: validation in the search, test at the chosen rate",
        "metric": "name of the metric; negative_loss if the task has none but its loss",
        "value": "the metric, higher is better; NaN if there is none",
        "loss": "mean loss, nats per labeled token or per sample; NaN if there is none",
        "trainable_parameters": "all trained parameters, a head included",
        "head_parameters": "the classification head, which every method trains",
        "seconds": "time of training",
        "preparation_seconds": "time before training: calibration, decompositions, making the adapter",
        "peak_bytes": "peak of memory during training, of CUDA or the process, or NaN",
        "forgetting": "mean increase of the loss on other texts, nats per token; NaN if none were measured",
        "status": "done, diverged (stopped by a loss or gradient that is not finite) or failed",
        "best_rate": "whether this is a run on the test split at the chosen rate",
    }
    summary_columns: ClassVar[dict[str, str]] = {
        "task": "name of the task",
        "model": "base model",
        "method": "name of the method or recipe",
        "rank": "nominal rank",
        "learning_rate": "the chosen one",
        "seeds": "runs on the test split that have outcomes",
        "metric": "name of the value",
        "value": "mean over runs and test samples, higher is better",
        "low": "lower end of its interval, for other runs and samples; NaN with fewer than two runs",
        "high": "upper end; NaN likewise",
        "difference": "value minus the baseline's with the same seeds; NaN if there is no baseline",
        "difference_low": "lower end of its interval, paired by seed and sample; NaN with fewer than two pairs",
        "difference_high": "upper end; NaN likewise",
        "baseline_rank": "rank of the baseline in that comparison",
        "trainable_parameters": "all trained parameters",
        "seconds": "mean time of training",
        "preparation_seconds": "mean time before training",
        "peak_bytes": "largest peak of memory",
        "forgetting": "mean increase of the loss on other texts, nats per token; NaN if none were measured",
        "seconds_to_baseline": "mean time, preparation included, until the training loss reaches the baseline's "
        "final one (running means over a tenth of the steps); NaN if it never does",
        "diverged": "runs at any rate that diverged",
        "failed": "runs at any rate that failed",
    }
    flatness_columns: ClassVar[dict[str, str]] = {
        "task": "name of the task",
        "model": "base model",
        "method": "name of the method or recipe",
        "rank": "nominal rank",
        "seeds": "number of searches averaged: those with every rate of the first",
        "best": "rate with the lowest mean loss on the validation split",
        "lowest": "lowest rate of the range around the best in which all losses are within the share",
        "highest": "highest rate of that range",
        "doublings": "log2 of highest over lowest",
        "edge": "ends of the grid that the range reaches, beyond which it may be wider: low, high, both or none",
    }

    @classmethod
    def read(
        cls,
        store: str | os.PathLike[str],
        *,
        tasks: str | Iterable[str] = (),
        methods: str | Iterable[str] = (),
        ranks: int | Iterable[int] = (),
    ) -> Self:
        """Read the runs of a store that can be compared.

        If a method has runs with different arguments under the same name, task, model and rank, only the newest
        arguments count. Of each task and model, only runs with the newest data and training settings count.

        Parameters
        ----------
        store : path-like
            The file that `compare` wrote.
        tasks, methods : str or iterable of str
            Only these; all by default.
        ranks : int or iterable of int
            Only these; all by default.

        Returns
        -------
        Comparison

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the store is damaged or empty, or has no runs of what was requested.

        Warns
        -----
        UserWarning
            If the last line is torn, or runs are left out because their data or training differ.
        """
        records = Store(store).read()
        if not records:
            raise ValueError(f"{store} is empty: fill it with compare(..., store=)")
        filters: dict[str, Any] = {"task": tasks, "method": methods, "rank": ranks}
        for name, values in filters.items():
            wanted = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
            present = dict.fromkeys(record["key"][name] for record in records)
            if missing := [value for value in wanted if value not in present]:
                raise ValueError(f"{store} has no runs of {name} {missing[0]}, only of {', '.join(map(str, present))}")
            records = [record for record in records if not wanted or record["key"][name] in wanted]
        newest = {_names(record["key"]): condition_text(record["key"]) for record in records}
        same_arguments = [r for r in records if newest[_names(r["key"])] == condition_text(r["key"])]
        return cls.from_records(_comparable(same_arguments))

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> Self:
        """Make a comparison from records of a store.

        Parameters
        ----------
        records : sequence of dict
            Records of `benchmarks.lab.run.run`; no two conditions share method, task, model and rank.

        Returns
        -------
        Comparison
        """
        runs = pd.DataFrame([_row(record) for record in records], columns=list(cls.columns))
        runs["metric"] = _metrics(runs)
        runs["best_rate"] = _is_best(runs)
        types = {"rank": "int64", "seed": "int64", "best_rate": "bool"}
        floats = dict.fromkeys(("learning_rate", "value", "loss", *COSTS), "float64")
        outcomes = {
            f"{row}.{metric}": torch.from_numpy(unpack(text)).float()
            for row, record in enumerate(records)
            for metric, text in record.get("outcomes", {}).items()
        }
        return cls(runs.astype(types | floats), outcomes)

    def summary(
        self,
        baseline: str | None = None,
        *,
        baseline_rank: BaselineRank = "same",
        metric: str | None = None,
        confidence: float = 0.95,
    ) -> pd.DataFrame:
        """Each method at its chosen rate on the test split, and its difference from a baseline.

        Parameters
        ----------
        baseline : str, optional
            The method that the others are compared with; ``"lora"`` by default, if it was compared.
        baseline_rank : {"same", "nearest"} or int
            Compare with the baseline at the same rank, at the rank at which it trains most nearly as many parameters,
            or at this rank.
        metric : str, optional
            ``"loss"`` for the held-out loss (its negative, so that higher is better); the task's own by default.
        confidence : float
            Of the intervals, between 0 and 1.

        Returns
        -------
        pandas.DataFrame
            One row a task, model, rank and method; see ``summary_columns``.

        Raises
        ------
        ValueError
            If the baseline was not compared, or not at that rank.

        Notes
        -----
        Runs are paired by seed (the same head and the same order of the data), test samples with themselves.
        Intervals are those of `tlora.comparison.interval.paired_interval`, for other seeds and samples; with a single
        seed there is none. They are for the chosen rates: that another search could have chosen other rates is not
        included. Outcomes are stored in float16, so differences of losses below about 0.1 % are rounding.
        """
        frame = summarize(self.runs, self.outcomes, baseline, baseline_rank, metric, confidence)
        return frame[list(self.summary_columns)]

    def flatness(self, share: float = 0.01) -> pd.DataFrame:
        """The range of learning rates around the best whose losses are within a share of its loss.

        A rate's loss is the mean over the seeds of the search: with few seeds, much of the range is chance.

        Parameters
        ----------
        share : float
            Part of the lowest mean loss on the validation split by which another may be higher.

        Returns
        -------
        pandas.DataFrame
            One row a task, model, rank and method; see ``flatness_columns``.
        """
        rows = [
            dict(zip(CONDITION, condition, strict=True))
            | {"seeds": len(curves)}
            | flat_range(mean_curve(curves), share)
            for condition, curves in searches(self.runs)
        ]
        return pd.DataFrame(rows, columns=list(self.flatness_columns))

    def __repr__(self) -> str:
        counts = self.runs["status"].value_counts()
        unfinished = "".join(f", {counts[status]} {status}" for status in ("diverged", "failed") if status in counts)
        methods = list(dict.fromkeys(self.runs["method"]))
        names = ", ".join(methods[:6]) + (", ..." if len(methods) > 6 else "")
        tasks = self.runs["task"].nunique()
        return f"Comparison({len(methods)} methods ({names}) on {tasks} tasks, {len(self.runs)} runs{unfinished})"


def condition_text(key: Mapping[str, Any]) -> str:
    """The part of a key that the runs of one condition share, as text."""
    return key_text({name: value for name, value in key.items() if name not in RUN})


def record_score(record: Record) -> float:
    """The score of a run, by which learning rates are chosen: its negative loss on the validation split."""
    return rate_score(record["status"], record.get("metrics", {}).get("loss", np.nan))


def _names(key: Mapping[str, Any]) -> str:
    return key_text({name: key[name] for name in CONDITION})


def _comparable(records: Sequence[Record]) -> list[Record]:
    """The runs with the newest data and training of each task and model; warn about the others."""
    newest = {_place(record): _settings(record) for record in records}
    kept, reasons = [], {}
    for record in records:
        wanted, settings = newest[_place(record)], _settings(record)
        if settings == wanted:
            kept.append(record)
            continue
        name = next(name for name in wanted | settings if wanted.get(name) != settings.get(name))
        reasons[record["key"]["method"], record["key"]["task"]] = (
            "the files of the task or of the base have changed since"
            if name == "contents"
            else f"their {name} is {settings.get(name)}, that of the newest runs is {wanted.get(name)}"
        )
    for (method, task), reason in reasons.items():
        warnings.warn(f"runs of {method} on {task} are left out: {reason}; repeat them", stacklevel=3)
    return kept


def _place(record: Record) -> tuple[str, str]:
    return record["key"]["task"], record["key"]["model"]


def _settings(record: Record) -> dict[str, Any]:
    """What must be equal for runs to be comparable: data, steps, precision."""
    return {name: value for name, value in record["key"].items() if name not in RUN | {*CONDITION, "arguments"}}


def _row(record: Record) -> dict[str, Any]:
    key, metrics = record["key"], record.get("metrics", {})
    metric = next((name for name in metrics if name != "loss"), "loss") if metrics else ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return {
        **{name: key[name] for name in (*CONDITION, *RUN)},
        "metric": LOWER_IS_BETTER.get(metric, metric),
        "value": sign * metrics.get(metric, np.nan),
        "loss": metrics.get("loss", np.nan),
        "status": record["status"],
        **{name: record.get(name) for name in COSTS},
    }


def _metrics(runs: pd.DataFrame) -> list[str]:
    """The metric of each run; that of a failed run is the metric of the others on its task."""
    by_task = {task: metric for task, metric in zip(runs["task"], runs["metric"], strict=True) if metric}
    return [metric or by_task.get(task, "") for task, metric in zip(runs["task"], runs["metric"], strict=True)]


def _is_best(runs: pd.DataFrame) -> pd.Series:
    """Whether a run is one on the test split at its method's chosen rate.

    That is the best in the search among the tested rates; without a search, the rate that was tested last.
    """
    curves = {condition: mean_curve(each) for condition, each in searches(runs)}
    chosen = {}
    for condition, rows in runs[runs["split"] == "test"].groupby(list(CONDITION), sort=False):
        curve = curves.get(condition, {})
        last_first = dict.fromkeys(reversed(rows["learning_rate"].tolist()))
        chosen[condition] = max(last_first, key=lambda rate: curve.get(rate, -np.inf))
    conditions = runs[list(CONDITION)].itertuples(index=False, name=None)
    best = pd.Series([chosen.get(condition) for condition in conditions], index=runs.index, dtype="float64")
    return (runs["split"] == "test") & (runs["learning_rate"] == best)
