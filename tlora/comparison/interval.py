"""One interval for the mean of paired differences over seeds and held-out samples: pure functions of arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

FACTORS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
"""The multiples of seeds or samples that `more_needed` considers."""


class Interval(NamedTuple):
    """A mean difference and the ends of its interval."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Float[np.ndarray, "seeds samples"], error: float) -> Interval:
    """Interval for the mean of paired differences.

    Parameters
    ----------
    differences : (S, N) float array
        One row a seed, one column a held-out sample.
    error : float
        Share of such intervals that may miss the true mean, e.g. 0.05.

    Returns
    -------
    Interval
        With one seed, for other samples: Student's t with ``N - 1`` degrees of freedom. With several, for other seeds
        and samples. The ends are NaN if there are fewer than two samples or a difference is not finite.

    Notes
    -----
    With several seeds, the half-width is the root of ``(t_S^2 MS_seeds + t_N^2 MS_samples) / (S N)``: the mean squares
    of a two-way layout, each with the quantile of its own degrees of freedom, ``S - 1`` and ``N - 1``. By Banerjee it
    misses at most as often as ``error`` says, since the two together are at least the variance of the mean. It contains
    the t interval over the means of the seeds, which is exact if two arms do not differ. Satterthwaite's degrees of
    freedom give a narrower interval, which misses more often than it says if seeds are few.

    References
    ----------
    Banerjee, "Approximate confidence interval for linear functions of means of k populations when the population
    variances are not equal", Sankhya 1960.
    """
    seeds, samples = differences.shape
    mean = float(differences.mean())
    if samples < 2 or not np.isfinite(differences).all():
        return Interval(mean, math.nan, math.nan)
    half = _half_width(*_variance_components(differences), seeds, samples, error)
    return Interval(mean, mean - half, mean + half)


def more_needed(differences: Float[np.ndarray, "seeds samples"], error: float, margin: float) -> str:
    """How much more data would decide a comparison if mean and variances stayed what they are.

    Parameters
    ----------
    differences : (S, N) float array
        As for `paired_interval`.
    error : float
        As for `paired_interval`.
    margin : float
        Differences up to this do not matter.

    Returns
    -------
    str
        ``"about 4 times the samples"``, or the seeds, or both: whichever needs the smallest factor.
    """
    seeds, samples = differences.shape
    mean, variances = abs(float(differences.mean())), _variance_components(differences)
    target = max(mean, margin - mean)
    options = {"samples": (False, True)}
    if seeds > 1:
        options |= {"seeds": (True, False), "seeds and samples": (True, True)}
    for factor in FACTORS:
        for what, (more_seeds, more_samples) in options.items():
            s, n = seeds * (factor if more_seeds else 1), samples * (factor if more_samples else 1)
            if _half_width(*variances, s, n, error) < target:
                return f"about {factor} times the {what}"
    return f"more than {FACTORS[-1]} times the {list(options)[-1]}"


def mean_squares(
    values: Float[np.ndarray, "rows columns"],
) -> tuple[Float[np.ndarray, " parts"], Int[np.ndarray, " parts"]]:
    """Mean squares and degrees of freedom of rows, columns and residuals in a two-way layout without replication."""
    (m, n), mean = values.shape, values.mean()
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    residuals = values - mean - rows[:, None] - columns
    freedom = np.array([m - 1, n - 1, (m - 1) * (n - 1)])
    sums = np.array([n * (rows**2).sum(), m * (columns**2).sum(), (residuals**2).sum()])
    return sums / np.maximum(freedom, 1), freedom


def _variance_components(differences: Float[np.ndarray, "seeds samples"]) -> tuple[float, float, float]:
    """Variances of seeds, of samples, and of both together."""
    seeds, samples = differences.shape
    if seeds == 1:
        return 0.0, float(differences.var(ddof=1)), 0.0
    (by_seed, by_sample, residual), _ = mean_squares(differences)
    return float(by_seed - residual) / samples, float(by_sample - residual) / seeds, float(residual)


def _half_width(by_seed: float, by_sample: float, residual: float, seeds: int, samples: int, error: float) -> float:
    """Half the interval's width; a negative component cancels against the residual that it was computed from."""
    squares = stdtrit(samples - 1, 1 - error / 2) ** 2 * (seeds * by_sample + residual)
    if seeds > 1:
        squares += stdtrit(seeds - 1, 1 - error / 2) ** 2 * (samples * by_seed + residual)
    return math.sqrt(max(0.0, float(squares)) / (seeds * samples))
