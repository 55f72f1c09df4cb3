"""Comparison: runs of several methods, their learning rates, and what they are worth beside each other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tlora.comparison.lr_search import averaged, flat_range, score, searches
from tlora.comparison.store import Record, Store, key_text, unpacked
from tlora.comparison.summary import LOWER_IS_BETTER, PLACE, BaselineRank, summarise
from tlora.results import Meta, Result
from tlora.utils.packages import library_versions

_RUN = {"learning_rate", "seed", "split"}
_COSTS = ("trainable_parameters", "head_parameters", "seconds", "preparation_seconds", "peak_bytes", "forgetting")


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Result):
    """Runs of several methods, each at several learning rates, and at its best one with several seeds.

    Attributes
    ----------
    runs : pandas.DataFrame
        One row a run; see ``columns``.
    outcomes : dict of (N,) float32 tensor
        What a run made of each test sample, by ``"ROW.METRIC"``: its row in ``runs``, and a metric. By
        ``"ROW.training"``, the loss of each training step.
    meta : Meta
        Models and tasks by name; the recipe has what the runs have in common; the versions are those of the last run.
    """

    runs: pd.DataFrame
    outcomes: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "method": "name of the method or recipe",
        "task": "name of the task",
        "model": "base model",
        "rank": "nominal rank",
        "learning_rate": "peak learning rate",
        "seed": "seed of head, adapter, and which samples are trained on, in which order",
        "split": "what was evaluated: validation in the search, test at the chosen rate",
        "metric": "name of the value; negative_loss where the task has no metric but its loss",
        "value": "headline metric, higher is better; NaN where there is none",
        "loss": "mean loss, nats per labelled token or per sample; NaN where there is none",
        "trainable_parameters": "all that was trained, a head included",
        "head_parameters": "those of them that every method trains: the classification head",
        "seconds": "time of training",
        "preparation_seconds": "time before it: calibration, decompositions, making the adapter",
        "peak_bytes": "most memory while training, of CUDA or the process, with what is kept for other runs, or NaN",
        "forgetting": "mean increase of the loss on other texts, nats per token; NaN where none were given",
        "status": "done, diverged (stopped by a loss or gradient that is not finite) or failed",
        "best_rate": "whether this is a run on the test split at the rate that was found best, or given",
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
        "low": "lower end of its interval, for other runs and samples; NaN where there are fewer than two runs",
        "high": "upper end; NaN likewise",
        "difference": "value less that of the baseline with the same seeds; NaN where it has none",
        "difference_low": "lower end of its interval, paired by run and by sample; NaN where fewer than two are paired",
        "difference_high": "upper end; NaN likewise",
        "baseline_rank": "rank of the baseline that it was compared with",
        "trainable_parameters": "all that was trained",
        "seconds": "mean time of training",
        "preparation_seconds": "mean time before it",
        "peak_bytes": "largest peak of memory",
        "forgetting": "mean increase of the loss on other texts, nats per token; NaN where none were given",
        "seconds_to_baseline": "mean time, preparation included, until the training loss is what the baseline's is in "
        "the end (running means over a tenth of the steps); NaN where it is never",
        "diverged": "runs, at any rate, that diverged",
        "failed": "runs, at any rate, that failed",
    }
    flatness_columns: ClassVar[dict[str, str]] = {
        "task": "name of the task",
        "model": "base model",
        "method": "name of the method or recipe",
        "rank": "nominal rank",
        "seeds": "searches that the values are means of: those with every rate of the first",
        "best": "rate with the lowest mean loss on the validation split",
        "lowest": "lowest rate from which on all losses, up to the best rate, are within the share of the lowest",
        "highest": "highest such rate",
        "doublings": "log2 of highest over lowest",
        "edge": "ends of the grid that the range reaches, where it may be wider: low, high, low and high, or none",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row a run; see ``columns``."""
        return self.runs.copy()

    @classmethod
    def read(
        cls,
        store: str | os.PathLike[str],
        *,
        tasks: str | Iterable[str] = (),
        methods: str | Iterable[str] = (),
        ranks: int | Iterable[int] = (),
    ) -> Self:
        """The runs of a store.

        Where a method has runs with other arguments under the same name, task, model and rank, those that were begun
        last count. What is compared has its data and training in common: of each task and model the runs with those
        that were begun last.

        Parameters
        ----------
        store : path-like
            The file that `tlora.compare` wrote.
        tasks, methods : str or iterable of str
            Only these, by the names in the store; without any, all.
        ranks : int or iterable of int
            Only these.

        Returns
        -------
        Comparison

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged, or holds no runs, or none of those that were asked for.

        Warns
        -----
        UserWarning
            If its last line is torn, or runs are left out because their data or training differ.
        """
        records = Store(store).read()
        if not records:
            raise ValueError(f"{store} holds no runs: fill it with tlora.compare(..., store=)")
        only: dict[str, Any] = {"task": tasks, "method": methods, "rank": ranks}
        for name, asked in only.items():
            wanted = [asked] if isinstance(asked, str | Integral) else list(asked)
            there = dict.fromkeys(record["key"][name] for record in records)
            absent = [each for each in wanted if each not in there]
            if absent:
                found = ", ".join(map(str, there))
                raise ValueError(f"{store} has no runs of {name} {absent[0]} among those asked for, only of {found}")
            records = [record for record in records if not wanted or record["key"][name] in wanted]
        last = {_place(record["key"]): cell_text(record["key"]) for record in records}
        return cls.of(_alike([r for r in records if last[_place(r["key"])] == cell_text(r["key"])]))

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        """The comparison that records of a store make.

        Parameters
        ----------
        records : sequence of dict
            Of ``tlora.comparison.run.run``, no two cells of which have method, task, model and rank in common.

        Returns
        -------
        Comparison
        """
        runs = pd.DataFrame([_row(record) for record in records], columns=list(cls.columns))
        runs["metric"] = _named_metrics(runs)
        runs["best_rate"] = _is_best(runs)
        types = {"rank": "int64", "seed": "int64", "best_rate": "bool"}
        floats = dict.fromkeys(("learning_rate", "value", "loss", *_COSTS), "float64")
        outcomes = {
            f"{row}.{metric}": torch.from_numpy(unpacked(text)).float()
            for row, record in enumerate(records)
            for metric, text in record.get("outcomes", {}).items()
        }
        return cls(runs.astype(types | floats), outcomes, _meta(records))

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
            Name of the method that the others are compared with; ``"lora"``, where it was compared, by default.
        baseline_rank : {"same", "nearest"} or int
            Hold a method against the baseline at the same rank, at the rank at which the baseline trains most nearly as
            many parameters, or at this rank, whatever the method's own.
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
            If the baseline was not compared, or not at that rank, or a number is out of range.

        Notes
        -----
        A run is paired with that of the same seed (which has the same head and the same order of the data), a test
        sample with itself. Intervals allow for other runs and other samples, and for how few they are: Student's t, on
        the variance components of runs and samples (``tlora.comparison.summary``); one run says nothing of others and
        has none.
        They are at the rates that were chosen, with other seeds than these: that another search could have chosen
        others is not in them. Outcomes of
        samples are kept in float16, so that of losses a difference below about 0.1 % is rounding, or zero.
        """
        frame = summarise(self.runs, self.outcomes, baseline, baseline_rank, metric, confidence)
        return frame[list(self.summary_columns)]

    def flatness(self, share: float = 0.01) -> pd.DataFrame:
        """The range of learning rates around the best whose losses are within a share of its loss.

        A rate's loss is the mean over the seeds of the search: the fewer, the more of the range is chance.

        Parameters
        ----------
        share : float
            Part of the lowest mean loss on the validation split by which another may be higher.

        Returns
        -------
        pandas.DataFrame
            One row a task, model, rank and method; see ``flatness_columns``.

        Raises
        ------
        ValueError
            If the share is negative.
        """
        if not share >= 0:
            raise ValueError(f"share={share!r}: pass a part of the best value, e.g. 0.01")
        rows = [
            dict(zip(PLACE, place, strict=True)) | {"seeds": len(curves)} | flat_range(averaged(curves), share)
            for place, curves in searches(self.runs)
        ]
        return pd.DataFrame(rows, columns=list(self.flatness_columns))

    def _summary(self) -> str:
        counts = self.runs["status"].value_counts()
        odd = "".join(f", {counts[status]} {status}" for status in ("diverged", "failed") if status in counts)
        methods = list(dict.fromkeys(self.runs["method"]))
        named = ", ".join(methods[:6]) + (", ..." if len(methods) > 6 else "")
        tasks = self.runs["task"].nunique()
        return f"{len(methods)} methods ({named}) on {tasks} tasks, {len(self.runs)} runs{odd}"

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Rows may have been sorted or dropped since; what is read again is numbered from zero.
        places = {str(row): place for place, row in enumerate(self.runs.index)}
        parts = {key: key.partition(".") for key in self.outcomes}
        outcomes = {f"{places[row]}.{of}": self.outcomes[key] for key, (row, _, of) in parts.items() if row in places}
        return outcomes, {"runs": self.runs.to_dict("list")}

    @classmethod
    def _unpack(cls, tensors: dict[str, Tensor], values: dict[str, Any], meta: Meta) -> Self:
        runs = pd.DataFrame(values["runs"], columns=list(cls.columns))
        return cls(runs.astype(dict.fromkeys(("learning_rate", "value", "loss", *_COSTS), "float64")), tensors, meta)


def _place(key: Mapping[str, Any]) -> str:
    return key_text({name: key[name] for name in PLACE})


def cell_text(key: Mapping[str, Any]) -> str:
    """What the runs of one search, and the final runs at its rate, have in common, as text."""
    return key_text({name: value for name, value in key.items() if name not in _RUN})


def _alike(records: Sequence[Record]) -> list[Record]:
    """Those with the data and the training of the last on the same task and model; says which are left out."""
    last = {_where(record): _conditions(record) for record in records}
    kept, left = [], {}
    for record in records:
        wanted, found = last[_where(record)], _conditions(record)
        if found == wanted:
            kept.append(record)
            continue
        name = next(name for name in wanted | found if wanted.get(name) != found.get(name))
        left[record["key"]["method"], *_where(record)] = (
            "the files of the task or of the base have changed since"
            if name == "contents"
            else f"{name} is {found.get(name)} there and {wanted.get(name)} where they were begun last"
        )
    for (method, task, _), told in left.items():
        warnings.warn(
            f"runs of {method} on {task} are left out, because they cannot be compared: {told}; run them again",
            stacklevel=3,
        )
    return kept


def _where(record: Record) -> tuple[str, str]:
    return record["key"]["task"], record["key"]["model"]


def _conditions(record: Record) -> dict[str, Any]:
    """What is the same for all methods that are compared: data, steps, precision."""
    return {name: value for name, value in record["key"].items() if name not in _RUN | {*PLACE, "arguments"}}


def _row(record: Record) -> dict[str, Any]:
    key, metrics = record["key"], record.get("metrics", {})
    metric = headline(metrics) if metrics else ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return {
        **{name: key[name] for name in (*PLACE, *_RUN)},
        "metric": LOWER_IS_BETTER.get(metric, metric),
        "value": sign * metrics.get(metric, np.nan),
        "loss": metrics.get("loss", np.nan),
        "status": record["status"],
        **{name: record.get(name) for name in _COSTS},
    }


def _named_metrics(runs: pd.DataFrame) -> list[str]:
    """The metric of each run: of those that failed, that of the others on the task."""
    named = {task: metric for task, metric in zip(runs["task"], runs["metric"], strict=True) if metric}
    return [metric or named.get(task, "") for task, metric in zip(runs["task"], runs["metric"], strict=True)]


def headline(metrics: Mapping[str, float]) -> str:
    """The metric that decides: the task's own, or the loss where that is all there is."""
    return next((name for name in metrics if name != "loss"), "loss")


def score_of(record: Record) -> float:
    """What a learning rate is chosen by: the loss on the validation split; see `tlora.comparison.lr_search`."""
    return score(record["status"], record.get("metrics", {}).get("loss", np.nan))


def _is_best(runs: pd.DataFrame) -> pd.Series:
    """Whether a run is one on the test split at its method's rate.

    That is the best in the search of those that were tested; where none of them was searched, the last.
    """
    curves = {place: averaged(found) for place, found in searches(runs)}
    chosen = {}
    for place, rows in runs[runs["split"] == "test"].groupby(list(PLACE), sort=False):
        curve = curves.get(place, {})
        last_first = dict.fromkeys(reversed(rows["learning_rate"].tolist()))
        chosen[place] = max(last_first, key=lambda rate: curve.get(rate, -np.inf))
    places = runs[list(PLACE)].itertuples(index=False, name=None)
    best = pd.Series([chosen.get(place) for place in places], index=runs.index, dtype="float64")
    return (runs["split"] == "test") & (runs["learning_rate"] == best)


def _meta(records: Sequence[Record]) -> Meta:
    keys = [record["key"] for record in records]
    alike = {
        name: keys[0][name]
        for name in ("steps", "batch_size", "samples", "dtype", "data", "protocol", "forgetting")
        if name in keys[0] and all(key.get(name) == keys[0][name] for key in keys)
    }
    names: dict[str, Any] = {
        name: ", ".join(dict.fromkeys(str(key[name]) for key in keys)) for name in ("model", "task")
    }
    versions = records[-1].get("versions") or library_versions()
    return Meta(**names, recipe=alike, samples=alike.get("samples") or keys[0]["samples"], versions=versions)
