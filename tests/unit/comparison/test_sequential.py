"""Intervals that are looked at several times: against scipy, and how often they miss."""

import numpy as np
import pytest
import scipy.stats

from tlora.comparison.sequential import FACTORS, error_at_looks, more_needed, paired_interval


def correlated_looks(rng, looks=4, seeds=3, samples=30, of_seeds=0.3, of_samples=0.0):
    """Differences without any true one, that grow from look to look as those of adapters do."""
    steps = of_seeds * rng.normal(size=(looks, seeds, 1)) + 0.3 * rng.normal(size=(looks, seeds, samples))
    return np.cumsum(steps + of_samples * rng.normal(size=(looks, 1, samples)), axis=0)


@pytest.mark.parametrize("looks", [1, 2, 4, 7])
def test_what_looks_spend_is_the_error(looks):
    shares = error_at_looks(looks, 0.05)
    assert len(shares) == looks
    assert sum(shares) == pytest.approx(0.05)
    assert shares[-1] == max(shares)


def test_of_one_seed_it_is_the_t_interval_over_samples():
    x = np.random.default_rng(0).normal(0.2, 1, (1, 25))
    expected = scipy.stats.ttest_1samp(x[0], 0).confidence_interval(0.98)
    assert paired_interval(x, 0.02) == pytest.approx((x.mean(), *expected))


def test_where_samples_are_alike_it_is_the_t_interval_over_seeds():
    means = np.array([0.3, 0.1, -0.2, 0.25])
    expected = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert paired_interval(np.repeat(means[:, None], 50, axis=1), 0.05) == pytest.approx((means.mean(), *expected))


def test_where_seeds_are_alike_it_is_the_t_interval_over_samples():
    x = np.random.default_rng(0).normal(0.2, 1, 25)
    expected = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = paired_interval(np.repeat(x[None], 3, axis=0), 0.05)
    assert found.high - found.low == pytest.approx((expected.high - expected.low), rel=1e-6)


def test_it_is_never_narrower_than_the_t_interval_over_the_means_of_seeds():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x = correlated_looks(rng, looks=1, of_samples=rng.random())[0]
        expected = scipy.stats.ttest_1samp(x.mean(1), 0).confidence_interval(0.95)
        low, high = paired_interval(x, 0.05)[1:]
        assert low <= expected.low + 1e-12
        assert high >= expected.high - 1e-12


@pytest.mark.parametrize(("seeds", "of_seeds", "of_samples"), [(2, 0.3, 0), (3, 0.3, 0), (3, 0.1, 1), (1, 0, 1)])
def test_over_all_looks_it_misses_at_most_as_often_as_it_says(seeds, of_seeds, of_samples):
    """As if every training and sample were independent, it would miss far more often."""
    rng, races = np.random.default_rng(1), 1000
    missed = pooled = 0
    for _ in range(races):
        looks = correlated_looks(rng, seeds=seeds, of_seeds=of_seeds, of_samples=of_samples)
        found = [paired_interval(x, error) for x, error in zip(looks, error_at_looks(4, 0.05), strict=True)]
        missed += any(i.low > 0 or i.high < 0 for i in found)
        pooled += any(abs(x.mean()) > 1.96 * x.std() / x.size**0.5 for x in looks)
    assert missed <= 0.05 * races + 2 * np.sqrt(races * 0.05 * 0.95)
    assert pooled > 0.09 * races


def test_a_true_difference_is_found():
    rng = np.random.default_rng(2)
    for seeds in (1, 3):
        x = 0.1 + 0.01 * rng.normal(size=(seeds, 1)) + 0.05 * rng.normal(size=(seeds, 60))
        assert paired_interval(x, 0.01).low > 0


def test_without_samples_enough_or_numbers_there_is_no_interval():
    assert np.isnan(paired_interval(np.ones((3, 1)), 0.05)[1:]).all()
    assert np.isnan(paired_interval(np.array([[0.1, np.nan]]), 0.05)[1:]).all()


@pytest.mark.parametrize("mean", [0.02, 0.05, 0.1])
def test_as_many_samples_as_are_needed_decide_and_fewer_do_not(mean):
    x = np.random.default_rng(3).normal(size=(1, 200))
    x = (x - x.mean()) + mean
    said = more_needed(x, 0.05, margin=0.001)
    factor = int(said.split()[1])
    assert said == f"about {factor} times the samples"
    fewer = max((f for f in FACTORS if f < factor), default=1)
    assert paired_interval(np.tile(x, factor), 0.05).low > 0
    assert paired_interval(np.tile(x, fewer), 0.05).low < 0


def test_a_difference_that_does_not_matter_needs_enough_to_fit_into_the_margin():
    x = np.random.default_rng(3).normal(size=(1, 200))
    x -= x.mean()
    factor = int(more_needed(x, 0.05, margin=0.06).split()[1])
    low, high = paired_interval(np.tile(x, factor), 0.05)[1:]
    assert -0.06 <= low <= high <= 0.06


def test_where_seeds_differ_more_seeds_are_asked_for():
    rng = np.random.default_rng(4)
    x = 0.1 + 0.2 * rng.normal(size=(3, 1)) + 0.01 * rng.normal(size=(3, 40))
    assert more_needed(x, 0.05, 0.02).endswith("times the seeds")
    assert more_needed(x - x.mean(), 0.05, 1e-9) == "more than 100 times the seeds and samples"
