"""The interval of paired differences: against scipy, and how often it misses."""

import numpy as np
import pytest
import scipy.stats

from tlora.comparison.interval import FACTORS, mean_squares, more_needed, paired_interval


def random_differences(rng, seeds=3, samples=30, by_seed=0.3, by_sample=0.0):
    """Differences with a true mean of zero that vary with seed, sample and both."""
    return (
        by_seed * rng.normal(size=(seeds, 1))
        + by_sample * rng.normal(size=(1, samples))
        + 0.3 * rng.normal(size=(seeds, samples))
    )


def test_one_seed_gives_the_t_interval_over_samples():
    x = np.random.default_rng(0).normal(0.2, 1, (1, 25))
    expected = scipy.stats.ttest_1samp(x[0], 0).confidence_interval(0.98)
    assert paired_interval(x, 0.02) == pytest.approx((x.mean(), *expected))


def test_equal_samples_give_the_t_interval_over_seeds():
    means = np.array([0.3, 0.1, -0.2, 0.25])
    expected = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert paired_interval(np.repeat(means[:, None], 50, axis=1), 0.05) == pytest.approx((means.mean(), *expected))


def test_mean_squares_are_those_of_pairs():
    """Mean squares from all pairs of rows and columns, without a mean."""
    x = np.random.default_rng(5).normal(size=(4, 6))
    squares, freedom = mean_squares(x)
    i, j = np.triu_indices(4, 1)
    k, m = np.triu_indices(6, 1)
    both = (x[i][:, k] - x[i][:, m] - x[j][:, k] + x[j][:, m]) ** 2
    rows, columns = x.mean(1), x.mean(0)
    assert squares == pytest.approx(
        [6 * ((rows[i] - rows[j]) ** 2).mean() / 2, 4 * ((columns[k] - columns[m]) ** 2).mean() / 2, both.mean() / 4]
    )
    assert freedom.tolist() == [3, 5, 15]


def test_it_contains_the_t_interval_over_the_means_of_seeds():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x = random_differences(rng, by_sample=rng.random())
        expected = scipy.stats.ttest_1samp(x.mean(1), 0).confidence_interval(0.95)
        _, low, high = paired_interval(x, 0.05)
        assert low <= expected.low + 1e-12
        assert high >= expected.high - 1e-12


@pytest.mark.parametrize(("seeds", "by_seed", "by_sample"), [(2, 0.3, 0), (3, 0.3, 0), (3, 0.1, 1), (1, 0, 1)])
def test_it_misses_at_most_as_often_as_it_says(seeds, by_seed, by_sample):
    """An interval that takes every difference for independent misses far more often."""
    rng, trials = np.random.default_rng(1), 2000
    missed = pooled = 0
    for _ in range(trials):
        x = random_differences(rng, seeds=seeds, by_seed=by_seed, by_sample=by_sample)
        _, low, high = paired_interval(x, 0.05)
        missed += low > 0 or high < 0
        pooled += abs(x.mean()) > 1.96 * x.std() / x.size**0.5
    assert missed <= 0.05 * trials + 2 * np.sqrt(trials * 0.05 * 0.95)
    if seeds > 1:
        assert pooled > 0.15 * trials


@pytest.mark.parametrize("differences", [np.ones((3, 1)), np.array([[0.1, np.nan]])])
def test_one_sample_or_nan_gives_no_interval(differences):
    assert np.isnan(paired_interval(differences, 0.05)[1:]).all()


@pytest.mark.parametrize("mean", [0.02, 0.05, 0.1])
def test_as_many_samples_as_are_needed_decide_and_fewer_do_not(mean):
    x = np.random.default_rng(3).normal(size=(1, 200))
    x += mean - x.mean()
    answer = more_needed(x, 0.05, margin=0.001)
    factor = int(answer.split()[1])
    assert answer == f"about {factor} times the samples"
    fewer = max((f for f in FACTORS if f < factor), default=1)
    assert paired_interval(np.tile(x, factor), 0.05).low > 0
    assert paired_interval(np.tile(x, fewer), 0.05).low < 0


def test_a_difference_that_does_not_matter_needs_enough_to_fit_into_the_margin():
    x = np.random.default_rng(3).normal(size=(1, 200))
    x -= x.mean()
    factor = int(more_needed(x, 0.05, margin=0.06).split()[1])
    _, low, high = paired_interval(np.tile(x, factor), 0.05)
    assert -0.06 <= low <= high <= 0.06


def test_seeds_that_differ_ask_for_more_seeds():
    rng = np.random.default_rng(4)
    x = 0.1 + 0.2 * rng.normal(size=(3, 1)) + 0.01 * rng.normal(size=(3, 40))
    assert more_needed(x, 0.05, 0.02).endswith("times the seeds")
    assert more_needed(x - x.mean(), 0.05, 1e-9) == "more than 100 times the seeds and samples"
