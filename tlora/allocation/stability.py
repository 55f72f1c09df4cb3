"""Stability: whether other samples, or fewer, would rank the modules and allocate the ranks the same way."""

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
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.numerics.statistics import bootstrap_means, interval, subsample_means, top_overlap
from tlora.results import Meta, Result
from tlora.utils.validation import check_type, require_confidence, require_positive_int


@dataclass(frozen=True, repr=False, eq=False)
class RankingStability(Result):
    """How closely subsamples of the calibration samples rank the modules as all samples do.

    Attributes
    ----------
    counts : list of int
        Samples in a subsample, rising.
    kendall : (counts, repeats) float64 tensor
        Kendall's tau-b between the scores of a subsample and those of all samples; NaN if either are all equal.
    overlap : (counts, repeats) float64 tensor
        Share of the ``top`` modules by all samples that are also among the ``top`` modules by a subsample.
    top : int
        Number of top modules compared.
    confidence : float
        Share of the repeats inside the intervals of the table.
    meta : Meta
        Model and task of the sensitivity; seed; number of all samples.

    Examples
    --------
    >>> stability = tlora.ranking_stability(calibration.sensitivity, repeats=20)
    >>> stability.counts
    [2, 4]
    >>> list(stability.to_frame())[:4]
    ['samples', 'kendall', 'kendall_low', 'kendall_high']
    """

    counts: list[int]
    kendall: Float[Tensor, "counts repeats"]
    overlap: Float[Tensor, "counts repeats"]
    top: int
    confidence: float
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "samples": "samples in a subsample",
        "kendall": "Kendall's tau-b with the ranking by all samples, mean over subsamples; NaN without an order",
        "kendall_low": "lower end of the interval that holds the stated share of the subsamples",
        "kendall_high": "upper end",
        "overlap": "share of the top modules that stay among the top, mean over subsamples",
        "overlap_low": "lower end of the interval that holds the stated share of the subsamples",
        "overlap_high": "upper end",
    }

    def samples_needed(self, kendall: float = 0.9) -> int | None:
        """Smallest count from which on the mean tau is at least ``kendall``; None if no count reaches it."""
        enough = (self.kendall.mean(1) >= kendall).tolist()
        short = [i for i, good in enumerate(enough) if not good]
        first = short[-1] + 1 if short else 0
        return self.counts[first] if first < len(self.counts) else None

    def to_frame(self) -> pd.DataFrame:
        """One row for each count of samples; see ``columns``."""
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
    """How much the ranks of an allocation change if the calibration samples are resampled.

    Attributes
    ----------
    targets : dict of Target
        Modules of the allocation by full name, in model order.
    allocation : dict of int
        Ranks of the allocation itself, by full module name.
    ranks : (resamples, M) int64 tensor
        Ranks of the same allocation made from each resample.
    samples : int
        Samples in a resample.
    confidence : float
        Of the intervals in the table.
    meta : Meta
        Of the allocation, with the seed of the resampling; its recipe holds the cost of a rank by module, ``costs``.

    Examples
    --------
    >>> stability = tlora.allocation_stability(calibration.sensitivity, allocation, resamples=20)
    >>> stability.to_frame()[["module", "rank", "low", "high"]].shape
    (14, 4)
    """

    allocation: dict[str, int]
    ranks: Integer[Tensor, "resamples modules"]
    samples: int
    confidence: float
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "rank": "rank in the allocation",
        "low": "lower end of the interval of the rank over resamples",
        "high": "upper end",
        "mean": "mean rank over resamples",
        "deviation": "standard deviation of the rank over resamples",
        "kept": "share of the resamples that give exactly the rank of the allocation",
    }

    @property
    def moved(self) -> Float[Tensor, " resamples"]:
        """Share of the spent budget that each resample gives to other modules: 0 if no rank changes.

        Counted as the budget is, in ranks or in trainable parameters.
        """
        allocation, costs = torch.tensor(list(self.allocation.values())), torch.tensor(self.meta.recipe["costs"])
        return ((allocation - torch.minimum(allocation, self.ranks)) * costs).sum(1).double() / (
            allocation * costs
        ).sum()

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        ranks, allocation = self.ranks.numpy(), np.array(list(self.allocation.values()))
        low, high = interval(ranks, self.confidence, method="closest_observation")
        return module_frame(self.targets.values()).assign(
            rank=allocation,
            low=low,
            high=high,
            mean=ranks.mean(0),
            deviation=ranks.std(0),
            kept=(ranks == allocation).mean(0),
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
    """Rank the modules by subsamples of the calibration samples and compare with the ranking by all of them.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores of N samples.
    counts : sequence of int, optional
        Samples in a subsample, each below N; powers of two from 2 on by default.
    top : int, optional
        Number of top modules to compare, at most M; by default 10 or half of the modules, whichever is less.
    repeats : int
        Subsamples for each count, drawn without replacement.
    confidence : float
        Of the intervals in the table.
    seed : int
        Seed of the subsampling.

    Returns
    -------
    RankingStability
        Kendall's tau and top overlap of every subsample.

    Raises
    ------
    ValueError
        If there are fewer than three samples or two modules, or a count or ``top`` is out of range.

    Notes
    -----
    The subsamples are parts of the set they are compared with: agreement approaches 1 as the count approaches N,
    however noisy the scores are. Trust counts that are small compared with N.

    References
    ----------
    Kendall, "The treatment of ties in ranking problems", Biometrika 1945 (tau-b).

    Examples
    --------
    >>> stability = tlora.ranking_stability(calibration.sensitivity, counts=[2, 4], repeats=20)
    >>> stability
    RankingStability(Kendall's tau with the ranking by all 8 samples: ... with 2, ... with 4)
    """
    check_type(sensitivity, Sensitivity, "calibrate(...).sensitivity")
    samples = sensitivity.resampling_scores()
    n, m = samples.shape
    if n < 3 or m < 2:
        raise ValueError(f"a ranking needs 2 modules and its stability 3 samples, got {m} and {n}: calibrate with more")
    top = max(1, min(10, m // 2)) if top is None else require_positive_int(top, "top")
    if top > m:
        raise ValueError(f"top is {top}, and there are {m} modules: at most {m}")
    counts = [2**i for i in range(1, n.bit_length()) if 2**i < n] if counts is None else counts
    counts = sorted({require_positive_int(count, "a count of samples") for count in counts})
    if not counts or counts[-1] >= n:
        raise ValueError(f"counts are {counts}, and there are {n} samples: give counts from 1 to {n - 1}")
    reference, repeats = samples.mean(0), require_positive_int(repeats, "repeats")
    means = np.concatenate([subsample_means(samples, repeats, seed + count, count) for count in counts])
    kendall = np.array([kendalltau(row, reference).statistic for row in means])
    overlap = top_overlap(means, reference, top)
    shape = (len(counts), repeats)
    taus, overlaps = torch.from_numpy(kendall).reshape(shape), torch.from_numpy(overlap).reshape(shape)
    recipe = {"counts": counts, "top": top, "repeats": repeats, "sensitivity": sensitivity.meta.recipe}
    meta = replace(sensitivity.meta, recipe=recipe, seed=seed, samples=n)
    return RankingStability(counts, taus, overlaps, top, require_confidence(confidence), meta)


def allocation_stability(
    sensitivity: Sensitivity,
    allocation: Allocation,
    *,
    samples: int | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> AllocationStability:
    """Repeat an allocation on resamples of the calibration samples, with the same options and edits.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores behind the allocation.
    allocation : Allocation
        The allocation to repeat.
    samples : int, optional
        Samples in a resample, drawn with replacement; all N by default. Fewer show how much an allocation from that
        many samples would differ.
    resamples : int
        Number of resamples.
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
        If the allocation is not of this sensitivity or not by score, or there are fewer than two samples.

    Examples
    --------
    >>> stability = tlora.allocation_stability(calibration.sensitivity, allocation, resamples=20)
    >>> stability
    AllocationStability(14 modules, 20 resamples of 8 samples, on average ...% of the budget moves)
    """
    check_type(allocation, Allocation, "allocate(...)")
    check_type(sensitivity, Sensitivity, "calibrate(...).sensitivity")
    sensitivity = sensitivity.rescale(allocation.options.score)
    scores = sensitivity.resampling_scores()
    if allocation.options.is_by_energy:
        raise ValueError(
            "ranks by captured gradient do not follow the scores that are resampled here: allocate with by='score'"
        )
    if {name: sensitivity.scores.get(name) for name in allocation.scores} != allocation.scores:
        raise ValueError(
            "the allocation was not made from this sensitivity: allocate(sensitivity, ...) makes one that is"
        )
    columns = [sensitivity.names.index(name) for name in allocation.scores]
    draws = len(scores) if samples is None else require_positive_int(samples, "samples")
    means = bootstrap_means(scores[:, columns], require_positive_int(resamples, "resamples"), seed, draws)
    limits, options = allocation.limits(), allocation.options
    ranks = torch.tensor([limits.apportion(options.rank_weights(row)) for row in means.tolist()])
    recipe = {"samples": draws, "resamples": resamples, "costs": limits.costs, "allocation": allocation.meta.recipe}
    meta = replace(allocation.meta, recipe=recipe, seed=seed)
    return AllocationStability(
        targets={name: allocation.targets[name] for name in allocation.scores},
        allocation={name: allocation.ranks.get(name, 0) for name in allocation.scores},
        ranks=ranks,
        samples=draws,
        confidence=require_confidence(confidence),
        meta=meta,
    )
