"""Intervals for paired differences that are looked at several times: pure functions of arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from tlora.comparison.summary import mean_squares

LAST = 0.8
"""Part of the error that the last look spends: what is asked is who is better in the end."""
FACTORS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
"""How many times as much may be asked for."""


class Interval(NamedTuple):
    """By how much one is better, and between which values that lies."""

    mean: float
    low: float
    high: float


def error_at_looks(looks: int, error: float) -> list[float]:
    """How much of the error each planned look may spend.

    Parameters
    ----------
    looks : int
        Looks that are planned.
    error : float
        Share of races in which an interval may miss the difference, at any look.

    Returns
    -------
    list of float
        They sum to ``error``: four fifths for the last look, the rest evenly for those before.

    Notes
    -----
    By the union bound no more than ``error`` of races have an interval that misses at any look, whatever the looks
    have in common. Boundaries of group-sequential trials (Pocock, O'Brien-Fleming) are narrower and do not hold here:
    they are for data that accumulate, and here the same samples are looked at with adapters that are trained further.
    To spend little before the end is the proposal of Haybittle and Peto.

    References
    ----------
    Haybittle, "Repeated assessment of results in clinical trials of cancer treatment", British Journal of Radiology
    1971; Peto et al., "Design and analysis of randomized clinical trials requiring prolonged observation of each
    patient", British Journal of Cancer 1976.
    """
    if looks == 1:
        return [error]
    return [*[(1 - LAST) * error / (looks - 1)] * (looks - 1), LAST * error]


def paired_interval(differences: Float[np.ndarray, "seeds samples"], error: float) -> Interval:
    """Interval for the mean of paired differences.

    Parameters
    ----------
    differences : (S, N) float array
        By seed and held-out sample.
    error : float
        Share of intervals that may miss the true mean.

    Returns
    -------
    Interval
        Of one seed, for other samples: Student's t with ``N - 1`` degrees of freedom. Of several, for other seeds and
        samples. NaN where there are fewer than two samples, or one is not finite.

    Notes
    -----
    Of several seeds, the half-width is the root of ``(t_S^2 MS_seeds + t_N^2 MS_samples) / (S N)``: the mean squares of
    a two-way layout, each with the quantile of its own degrees of freedom, ``S - 1`` and ``N - 1``. By Banerjee it
    misses at most as often as it says, since the two together are at least the variance of the mean. It holds the t
    interval over the means of the seeds, which is exact where two arms do not differ. The interval of `tlora.compare`,
    with Satterthwaite's degrees of freedom, is narrower, and misses more often than it says where seeds are few.

    References
    ----------
    Banerjee, "Approximate confidence interval for linear functions of means of k populations when the population
    variances are not equal", Sankhya 1960.
    """
    seeds, samples = differences.shape
    mean = float(differences.mean())
    if samples < 2 or not np.isfinite(differences).all():
        return Interval(mean, math.nan, math.nan)
    reach = _reach(*_variances(differences), seeds, samples, error)
    return Interval(mean, mean - reach, mean + reach)


def more_needed(differences: Float[np.ndarray, "seeds samples"], error: float, margin: float) -> str:
    """What would decide, if mean and variances stayed what they are.

    Parameters
    ----------
    differences : (S, N) float array
        As for `paired_interval`.
    error : float
        The same.
    margin : float
        Differences up to this do not matter.

    Returns
    -------
    str
        ``"about 4 times the samples"``; or seeds, where these are fewer times as many, or both.
    """
    seeds, samples = differences.shape
    mean, variances = abs(float(differences.mean())), _variances(differences)
    aim = max(mean, margin - mean)
    ways = {"samples": (0, 1)} if seeds == 1 else {"samples": (0, 1), "seeds": (1, 0), "seeds and samples": (1, 1)}
    for factor in FACTORS:
        for what, (of_seeds, of_samples) in ways.items():
            s, n = seeds * factor**of_seeds, samples * factor**of_samples
            if _reach(*variances, s, n, error) < aim:
                return f"about {factor} times the {what}"
    return f"more than {FACTORS[-1]} times the {list(ways)[-1]}"


def _variances(differences: Float[np.ndarray, "seeds samples"]) -> tuple[float, float, float]:
    """Variance components of seeds, of samples, and of both together."""
    seeds, samples = differences.shape
    if seeds == 1:
        return 0.0, float(differences.var(ddof=1)), 0.0
    (of_seeds, of_samples, of_both), _ = mean_squares(differences)
    return float(of_seeds - of_both) / samples, float(of_samples - of_both) / seeds, float(of_both)


def _reach(of_seeds: float, of_samples: float, of_both: float, seeds: int, samples: int, error: float) -> float:
    """Half of the interval's width; components below zero cancel where they came from."""
    t_samples = stdtrit(samples - 1, 1 - error / 2)
    squares = t_samples**2 * (seeds * of_samples + of_both)
    if seeds > 1:
        squares += stdtrit(seeds - 1, 1 - error / 2) ** 2 * (samples * of_seeds + of_both)
    return math.sqrt(max(0.0, float(squares)) / (seeds * samples))
