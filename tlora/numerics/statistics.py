"""Pure array functions for resampling and ranking."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]


def bootstrap_means(
    samples: Float[np.ndarray, "samples modules"], resamples: int, seed: int, draws: int | None = None
) -> Float[np.ndarray, "resamples modules"]:
    """Column means of resamples of ``draws`` whole rows with replacement, by default as many as there are.

    Computed as counts times samples, without forming any resample; the seed is that of ``numpy.random.default_rng``.
    """
    draws = len(samples) if draws is None else draws
    counts = _counts(np.random.default_rng(seed), resamples, len(samples), draws)
    return counts @ samples.astype(np.float64) / draws


def _counts(rng: np.random.Generator, resamples: int, n: int, draws: int) -> Integer[np.ndarray, "resamples n"]:
    """How often each of ``n`` is in each resample of ``draws``."""
    cells = rng.integers(0, n, (resamples, draws)) + n * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * n).reshape(resamples, n)


def subsample_means(
    samples: Float[np.ndarray, "samples modules"], repeats: int, seed: int, draws: int
) -> Float[np.ndarray, "repeats modules"]:
    """Column means of ``draws`` different rows, ``repeats`` times; see `bootstrap_means`."""
    order = np.random.default_rng(seed).random((repeats, len(samples))).argsort(1)[:, :draws]
    chosen = np.zeros((repeats, len(samples)))
    np.put_along_axis(chosen, order, 1.0, axis=1)
    return chosen @ samples.astype(np.float64) / draws


def top_overlap(
    rows: Float[np.ndarray, "rows modules"], reference: Float[np.ndarray, " modules"], k: int
) -> Float[np.ndarray, " rows"]:
    """Share of the reference's ``k`` highest that are among a row's ``k`` highest; ties by order."""
    member = np.zeros(len(reference), dtype=bool)
    member[np.argsort(-reference, kind="stable")[:k]] = True
    return member[np.argsort(-rows, axis=1, kind="stable")[:, :k]].mean(1)


def gini(values: Float[np.ndarray, " n"]) -> float:
    """Gini coefficient of non-negative values: 0 if all are equal, ``1 - 1/n`` if one has all, NaN if all are zero.

    The mean absolute difference of all pairs over twice the mean, by one sort.
    """
    ordered, n = np.sort(values.astype(np.float64)), len(values)
    total = ordered.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) @ ordered) / (n * total)) if total else float("nan")


def mean_interval(samples: Float[np.ndarray, "samples n"], confidence: float) -> tuple[Floats, Floats]:
    """Student's t interval of each column's mean over independent samples; NaN for one sample."""
    n = len(samples)
    if n < 2:
        return np.full(samples.shape[1], np.nan), np.full(samples.shape[1], np.nan)
    half = stdtrit(n - 1, (1 + confidence) / 2) * samples.std(0, ddof=1) / np.sqrt(n)
    return samples.mean(0) - half, samples.mean(0) + half


def share_interval(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of the probability behind a share of ``n`` independent samples."""
    z2 = ndtri((1 + confidence) / 2) ** 2
    center, half = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    return float((center - half) / (1 + z2 / n)), float((center + half) / (1 + z2 / n))


def ratio_interval(
    totals: Float[np.ndarray, " samples"],
    counts: Integer[np.ndarray, " samples"] | Float[np.ndarray, " samples"],
    confidence: float,
) -> tuple[float, float]:
    """Student's t interval of a ratio of two sums over samples; NaN for one sample.

    Such is a mean over all tokens, from each sample's sum and number of tokens: samples are independent, their tokens
    are not, and the variance is that of the ratio of two means.
    """
    mean = totals.sum() / counts.sum()
    residuals = (totals - mean * counts) / counts.mean()
    low, high = mean_interval(mean + residuals[:, None], confidence)  # the residuals add up to zero
    return float(low[0]), float(high[0])


def interval(
    rows: Float[np.ndarray, "rows modules"] | Integer[np.ndarray, "rows modules"],
    confidence: float,
    method: str = "linear",
) -> tuple[Floats, Floats]:
    """Percentile interval of each column; ``method`` as in `numpy.quantile`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(rows, [tail, 1 - tail], axis=0, method=method)  # type: ignore[call-overload]
    return low, high
