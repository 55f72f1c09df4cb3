"""Comparison: paired intervals, and what of a store is compared with each other."""

import itertools

import numpy as np
import pytest
import scipy.stats

from benchmarks.lab.summary import mean_interval


def test_where_runs_are_alike_it_is_the_paired_t_test_over_samples():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 300)).astype(float)
    b[:200] = a[:200]  # as methods that agree on most
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    assert mean_interval(np.repeat((a - b)[None], 3, axis=0), 0.9) == pytest.approx(tuple(expected))
    unpaired = scipy.stats.ttest_ind(a, b).confidence_interval(0.9)
    assert unpaired.high - unpaired.low > 1.4 * (expected.high - expected.low)


def test_where_samples_are_alike_it_is_the_t_test_over_runs():
    means = np.array([0.3, 0.1, -0.2, 0.25])
    expected = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert mean_interval(np.repeat(means[:, None], 50, axis=1), 0.95) == pytest.approx(tuple(expected))


def test_over_runs_and_samples_its_variance_is_that_of_pairs_of_pairs():
    """What two runs, or two samples, have in common, from every two of the one and two of the other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1)) + 2 * rng.normal(size=(1, 9)) + 0.5 * rng.normal(size=(4, 9))
    runs, samples, both = [], [], []
    for s, t in itertools.combinations(range(4), 2):
        for m, n in itertools.combinations(range(9), 2):
            runs.append((x[s, m] - x[t, m]) * (x[s, n] - x[t, n]) / 2)
            samples.append((x[s, m] - x[s, n]) * (x[t, m] - x[t, n]) / 2)
            both.append((x[s, m] - x[t, m] - x[s, n] + x[t, n]) ** 2 / 4)
    variance = np.mean(runs) / 4 + np.mean(samples) / 9 + np.mean(both) / 36
    low, high = mean_interval(x, 0.95)
    assert low + high == pytest.approx(2 * x.mean())
    quantile = (high - low) / 2 / np.sqrt(variance)
    assert scipy.stats.norm.ppf(0.975) < quantile < scipy.stats.t.ppf(0.975, 3)  # of more than the runs' freedom


@pytest.mark.parametrize(("runs", "samples", "both"), [(0.03, 0.2, 0.3), (0.03, 0.05, 0.05), (0.0, 0.2, 0.3)])
def test_of_three_runs_it_holds_the_true_mean_as_often_as_it_says(runs, samples, both):
    """A bootstrap over runs and samples holds it in 75 % of the second kind."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        parts = rng.normal(size=(3, 1)), rng.normal(size=(1, 100)), rng.normal(size=(3, 100))
        low, high = mean_interval(runs * parts[0] + samples * parts[1] + both * parts[2], 0.95)
        held += low <= 0 <= high
    assert 900 <= held <= 995


def test_of_a_single_run_there_is_no_interval_and_of_equals_no_spread():
    """The samples of one run say nothing of other runs, however many they are."""
    for values in (np.empty((0, 0)), np.ones((1, 1)), np.random.default_rng(0).normal(size=(1, 300))):
        assert np.isnan(mean_interval(values, 0.95)).all()
    assert mean_interval(np.zeros((3, 20)), 0.95) == (0, 0)
