"""Stability: whether other samples, or fewer, would have ranked the modules and allocated the ranks alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Integer
from scipy.stats import kendalltau
from torch import Tensor

from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.module_result import ModuleResult
from tlora.numerics.statistics import bootstrap_means, interval, subsample_means, top_overlap
from tlora.results import Meta, Result
from tlora.utils.validation import check_type, confidence_level, positive_int


@dataclass(frozen=True, repr=False, eq=False)
class RankingStability(Result):
    """How well subsamples of a calibration set order the modules as the whole set does.

    Attributes
    ----------
    counts : list of int
        Samples in a subsample, rising.
    kendall : (counts, repeats) float64 tensor
        Kendall's tau-b between the scores of a subsample and those of all samples; NaN where either are all equal.
    overlap : (counts, repeats) float64 tensor
        Part of the ``top`` highest modules of all samples that is among the ``top`` highest of a subsample.
    top : int
        How many modules count as the highest.
    confidence : float
        Of the intervals in the table: what part of the repeats is inside.
    meta : Meta
        Model and task of the sensitivity; seed; how many samples the whole set has.
    """

    counts: list[int]
    kendall: Float[Tensor, "counts repeats"]
    overlap: Float[Tensor, "counts repeats"]
    top: int
    confidence: float
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "samples": "samples in a subsample",
        "kendall": "Kendall's tau-b with the ranking by all samples, mean over subsamples; NaN where one has no order",
        "kendall_low": "lower end of the interval that holds the stated part of the subsamples",
        "kendall_high": "upper end",
        "overlap": "part of the highest modules found again, mean over subsamples",
        "overlap_low": "lower end of the interval that holds the stated part of the subsamples",
        "overlap_high": "upper end",
    }

    def samples_needed(self, kendall: float = 0.9) -> int | None:
        """Fewest samples from which on the mean tau is at least ``kendall``; None where there are none, or no order."""
        enough = (self.kendall.mean(1) >= kendall).tolist()
        short = [i for i, good in enumerate(enough) if not good]
        first = short[-1] + 1 if short else 0
        return self.counts[first] if first < len(self.counts) else None

    def to_frame(self) -> pd.DataFrame:
        """One row a count of samples; see ``columns``."""
        table: dict[str, Any] = {"samples": self.counts}
        for name, values in (("kendall", self.kendall.numpy()), ("overlap", self.overlap.numpy())):
            low, high = interval(values.T, self.confidence)
            table |= {name: values.mean(1), f"{name}_low": low, f"{name}_high": high}
        return pd.DataFrame(table)

    def _summary(self) -> str:
        means = list(zip(self.counts, self.kendall.mean(1), strict=True))
        taus = ", ".join(f"{tau:.2f} with {count}" for count, tau in means[:8])
        return f"Kendall's tau with the ranking by all {self.meta.samples} samples: {taus}"


@dataclass(frozen=True, repr=False, eq=False)
class AllocationStability(ModuleResult):
    """How the ranks of an allocation move when the calibration samples are resampled.

    Attributes
    ----------
    targets : dict of Target
        What each module of the allocation is, by full module name in model order.
    allocation : dict of int
        Ranks of the allocation itself, by full module name.
    ranks : (resamples, M) int64 tensor
        Ranks of the same allocation made from each resample.
    samples : int
        Samples in a resample.
    confidence : float
        Of the intervals in the table.
    meta : Meta
        Of the allocation, with the seed of the resampling; its recipe has the price of a rank by module, ``costs``.
    """

    allocation: dict[str, int]
    ranks: Integer[Tensor, "resamples modules"]
    samples: int
    confidence: float
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "rank": "rank in the allocation",
        "low": "lower end of the interval of the rank over resamples",
        "high": "upper end",
        "mean": "mean rank over resamples",
        "deviation": "standard deviation of the rank over resamples",
        "kept": "part of the resamples that give exactly the rank of the allocation",
    }

    @property
    def moved(self) -> Float[Tensor, " resamples"]:
        """Part of what the allocation spends that each resample takes from its modules: 0 where no rank moves.

        Counted as the budget is: in ranks, or each rank by its trainable parameters.
        """
        allocation, costs = torch.tensor(list(self.allocation.values())), torch.tensor(self.meta.recipe["costs"])
        return ((allocation - torch.minimum(allocation, self.ranks)) * costs).sum(1).double() / (
            allocation * costs
        ).sum()

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        ranks, allocation = self.ranks.numpy(), np.array(list(self.allocation.values()))
        low, high = interval(ranks, self.confidence, method="closest_observation")
        return pd.DataFrame(
            self._places()
            | {
                "rank": allocation,
                "low": low,
                "high": high,
                "mean": ranks.mean(0),
                "deviation": ranks.std(0),
                "kept": (ranks == allocation).mean(0),
            }
        )

    def _summary(self) -> str:
        return (
            f"{len(self.allocation)} modules, {len(self.ranks)} resamples of {self.samples} samples, on average "
            f"{float(self.moved.mean()):.1%} of the budget moves"
        )


def ranking_stability(
    sensitivity: Sensitivity,
    counts: Sequence[int] | None = None,
    *,
    top: int | None = None,
    repeats: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankingStability:
    """Rank the modules by fewer samples, many times, and compare with the ranking by all of them.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores of N samples.
    counts : sequence of int, optional
        Samples in a subsample, each below N; the powers of two from 2 on by default.
    top : int, optional
        How many modules count as the highest, at most M; 10 or half of them by default, the fewer.
    repeats : int
        Subsamples of each count, drawn without replacement.
    confidence : float
        Of the intervals in the table.
    seed : int
        Seed of the drawing.

    Returns
    -------
    RankingStability
        Kendall's tau and top overlap of every subsample.

    Raises
    ------
    ValueError
        If there are fewer than three samples or two modules; if a count or ``top`` is out of range; if a
        score is negative, NaN or infinite.

    Notes
    -----
    The subsamples are parts of the set that they are compared with, so that agreement comes to
    1 as the count comes to N, however noisy the scores. Trust the counts that are small beside N.

    References
    ----------
    Kendall, "The treatment of ties in ranking problems", Biometrika 1945 (tau-b).
    """
    samples = check_type(sensitivity, Sensitivity, "calibrate(...).sensitivity").checked()
    n, m = samples.shape
    if n < 3 or m < 2:
        raise ValueError(f"a ranking needs 2 modules and its stability 3 samples, got {m} and {n}: calibrate with more")
    top = max(1, min(10, m // 2)) if top is None else positive_int(top, "top")
    if top > m:
        raise ValueError(f"top is {top}, and there are {m} modules: at most {m}")
    counts = [2**i for i in range(1, n.bit_length()) if 2**i < n] if counts is None else counts
    counts = sorted({positive_int(count, "a count of samples") for count in counts})
    if not counts or counts[-1] >= n:
        raise ValueError(f"counts are {counts}, and there are {n} samples: give counts from 1 to {n - 1}")
    reference, repeats = samples.mean(0), positive_int(repeats, "repeats")
    means = np.concatenate([subsample_means(samples, repeats, seed + count, count) for count in counts])
    kendall = np.array([kendalltau(row, reference).statistic for row in means])
    overlap = top_overlap(means, reference, top)
    shape = (len(counts), repeats)
    taus, overlaps = torch.from_numpy(kendall).reshape(shape), torch.from_numpy(overlap).reshape(shape)
    recipe = {"counts": counts, "top": top, "repeats": repeats, "sensitivity": sensitivity.meta.recipe}
    meta = replace(sensitivity.meta, recipe=recipe, seed=seed, samples=n)
    return RankingStability(counts, taus, overlaps, top, confidence_level(confidence), meta)


def allocation_stability(
    sensitivity: Sensitivity,
    allocation: Allocation,
    *,
    samples: int | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> AllocationStability:
    """Make an allocation again from resamples of the calibration samples, with the same options and edits.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores that the allocation was made from.
    allocation : Allocation
        The allocation.
    samples : int, optional
        Samples in a resample, drawn with replacement; all N by default. Fewer show how far an allocation from that
        many samples would be off.
    resamples : int
        How many allocations are made.
    confidence : float
        Of the intervals in the table.
    seed : int
        Seed of the resampling.

    Returns
    -------
    AllocationStability
        The ranks of every allocation.

    Raises
    ------
    ValueError
        If the allocation is not of this sensitivity; if there are fewer than two samples.
    """
    check_type(allocation, Allocation, "allocate(...)")
    sensitivity = check_type(sensitivity, Sensitivity, "calibrate(...).sensitivity").scored(allocation.options.score)
    drawn = sensitivity.checked()
    if {name: sensitivity.scores.get(name) for name in allocation.scores} != allocation.scores:
        raise ValueError(
            "the allocation was not made from this sensitivity: allocate(sensitivity, ...) makes one that is"
        )
    columns = [sensitivity.names.index(name) for name in allocation.scores]
    draws = len(drawn) if samples is None else positive_int(samples, "samples")
    means = bootstrap_means(drawn[:, columns], positive_int(resamples, "resamples"), seed, draws)
    limits, options = allocation.limits(), allocation.options
    ranks = torch.tensor([limits.solve(options.rank_weights(row)) for row in means.tolist()])
    recipe = {"samples": draws, "resamples": resamples, "costs": limits.costs, "allocation": allocation.meta.recipe}
    meta = replace(allocation.meta, recipe=recipe, seed=seed)
    return AllocationStability(
        targets={name: allocation.targets[name] for name in allocation.scores},
        allocation={name: allocation.ranks.get(name, 0) for name in allocation.scores},
        ranks=ranks,
        samples=draws,
        confidence=confidence_level(confidence),
        meta=meta,
    )
