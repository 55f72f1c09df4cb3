"""Stability: whether other samples, or fewer, would rank the modules and allocate the ranks the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau

from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.module_result import module_frame
from tlora.numerics.statistics import bootstrap_means, interval, subsample_means, top_overlap
from tlora.utils.validation import check_arguments, require_confidence, require_positive_int


def ranking_stability(
    sensitivity: Sensitivity,
    counts: Sequence[int] | None = None,
    *,
    top: int | None = None,
    repeats: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
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
        Share of the subsamples inside the intervals.
    seed : int
        Seed of the subsampling.

    Returns
    -------
    pandas.DataFrame
        One row for each count, rising: ``samples``; ``kendall``, the mean over the subsamples of Kendall's tau-b with
        the ranking by all samples (NaN if the scores of a subsample are all equal), ``kendall_low`` and
        ``kendall_high``, the ends of its interval; ``overlap``, the mean share of the top modules that stay among the
        top, ``overlap_low`` and ``overlap_high``; ``top``, the number of top modules compared.

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
    >>> ranking = tlora.ranking_stability(calibration.sensitivity, counts=[2, 4], repeats=20)
    >>> ranking[["samples", "top"]]
       samples  top
    0        2    7
    1        4    7
    >>> bool((ranking["kendall"] <= 1).all())
    True
    """
    check_arguments(ranking_stability, locals())
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
    kendall, overlap = [], []
    for count in counts:
        means = subsample_means(samples, repeats, seed + count, count)
        kendall.append([kendalltau(row, reference).statistic for row in means])
        overlap.append(top_overlap(means, reference, top))
    confidence = require_confidence(confidence)
    return pd.concat(
        [
            pd.DataFrame({"samples": counts}),
            _means_with_intervals("kendall", kendall, confidence),
            _means_with_intervals("overlap", overlap, confidence),
        ],
        axis=1,
    ).assign(top=top)


def allocation_stability(
    sensitivity: Sensitivity,
    allocation: Allocation,
    counts: Sequence[int] | None = None,
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Repeat an allocation on resamples of the calibration samples and measure how much of the budget moves.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores behind the allocation.
    allocation : Allocation
        The allocation to repeat, by score, with the same options and edits.
    counts : sequence of int, optional
        Samples in a resample, drawn with replacement; all N by default. Fewer show how much an allocation from that
        many samples would differ.
    resamples : int
        Number of resamples for each count.
    confidence : float
        Share of the resamples inside the intervals.
    seed : int
        Seed of the resampling.

    Returns
    -------
    pandas.DataFrame
        One row for each count, rising: ``samples``; ``moved``, the mean share of the spent budget that a resample gives
        to other modules, in ranks or in trainable parameters as the budget counts (0 if no rank changes);
        ``moved_low`` and ``moved_high``, the ends of its interval.

    Raises
    ------
    ValueError
        If the allocation is not of this sensitivity or not by score, or there are fewer than two samples.

    See Also
    --------
    rank_intervals : How much the rank of each module changes.

    Examples
    --------
    >>> moved = tlora.allocation_stability(calibration.sensitivity, allocation, counts=[2, 8], resamples=20)
    >>> list(moved)
    ['samples', 'moved', 'moved_low', 'moved_high']
    """
    check_arguments(allocation_stability, locals())
    counts = [len(sensitivity.per_sample)] if counts is None else counts
    counts = sorted({require_positive_int(count, "a count of samples") for count in counts})
    moved = []
    for count in counts:
        ranks = resample_ranks(sensitivity, allocation, samples=count, resamples=resamples, seed=seed)
        fewer = np.maximum(_ranks(allocation) - ranks, 0)
        moved.append(fewer @ allocation.limits.costs / allocation.budget_used)
    intervals = _means_with_intervals("moved", moved, require_confidence(confidence))
    return pd.concat([pd.DataFrame({"samples": counts}), intervals], axis=1)


def rank_intervals(
    sensitivity: Sensitivity,
    allocation: Allocation,
    *,
    samples: int | None = None,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Repeat an allocation on resamples of the calibration samples and measure how much each rank changes.

    Parameters
    ----------
    sensitivity : Sensitivity
        Per-sample scores behind the allocation.
    allocation : Allocation
        The allocation to repeat, by score, with the same options and edits.
    samples : int, optional
        Samples in a resample, drawn with replacement; all N by default.
    resamples : int
        Number of resamples.
    confidence : float
        Share of the resamples inside the intervals.
    seed : int
        Seed of the resampling.

    Returns
    -------
    pandas.DataFrame
        One row for each module that is not excluded: ``module``, ``layer``, ``projection``; ``rank`` in the allocation,
        0 if dropped; ``low`` and ``high``, the ends of the interval of the rank over resamples; ``mean`` and
        ``deviation``, its mean and standard deviation; ``kept``, the share of the resamples that give exactly this
        rank.

    Raises
    ------
    ValueError
        If the allocation is not of this sensitivity or not by score, or there are fewer than two samples.

    Examples
    --------
    >>> intervals = tlora.rank_intervals(calibration.sensitivity, allocation, resamples=20)
    >>> intervals[["module", "rank", "low", "high"]].shape
    (14, 4)
    """
    check_arguments(rank_intervals, locals())
    ranks = resample_ranks(sensitivity, allocation, samples=samples, resamples=resamples, seed=seed)
    allocated = _ranks(allocation)
    low, high = interval(ranks, require_confidence(confidence), method="closest_observation")
    return module_frame(allocation.targets[name] for name in allocation.scores).assign(
        rank=allocated,
        low=low,
        high=high,
        mean=ranks.mean(0),
        deviation=ranks.std(0),
        kept=(ranks == allocated).mean(0),
    )


def resample_ranks(
    sensitivity: Sensitivity,
    allocation: Allocation,
    *,
    samples: int | None,
    resamples: int,
    seed: int,
) -> NDArray[np.int64]:
    """Ranks of the allocation made again from each resample, (resamples, modules in ``allocation.scores``)."""
    sensitivity = sensitivity.by_parameter().rescale(allocation.options.score)
    scores = sensitivity.resampling_scores()
    if allocation.options.is_captured:
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
    limits, options = allocation.limits, allocation.options
    return np.array([limits.apportion(options.rank_weights(row)) for row in means.tolist()])


def _ranks(allocation: Allocation) -> NDArray[np.int64]:
    """Ranks of the modules that share the budget, 0 for the dropped ones."""
    return np.array([allocation.ranks.get(name, 0) for name in allocation.scores])


def _means_with_intervals(name: str, values: Sequence[ArrayLike], confidence: float) -> pd.DataFrame:
    """Means of rows of values, and the ends of the interval that holds the stated share of each row."""
    rows = np.array(values)
    low, high = interval(rows.T, confidence)
    return pd.DataFrame({name: rows.mean(1), f"{name}_low": low, f"{name}_high": high})
