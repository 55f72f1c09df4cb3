"""Stability of rankings and allocations, against SciPy and against allocations made one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.sensitivities import sensitivity
from tlora.allocation.allocate import allocate
from tlora.allocation.stability import RankingStability, allocation_stability, ranking_stability
from tlora.numerics.statistics import bootstrap_means, subsample_means, top_overlap


def noisy(noise, samples=32, modules=9, seed=0):
    """Scores 1, 2, 4, ...: each sample multiplies them by log-normal noise."""
    generator = np.random.default_rng(seed)
    factors = np.exp(noise * generator.normal(size=(samples, modules)))
    return sensitivity(2.0 ** (np.arange(modules) / 2) * factors)


def test_overlap_is_the_share_of_the_top_modules_that_stay_on_top():
    reference = np.array([5.0, 1.0, 4.0, 3.0, 2.0])
    rows = np.array([[9.0, 0.0, 8.0, 7.0, 0.0], [0.0, 9.0, 8.0, 0.0, 7.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(top_overlap(rows, reference, 3), [1, 1 / 3, 2 / 3])  # ties in order: 0, 1, 2


def test_ranking_stability_is_tau_and_overlap_of_subsamples():
    source = noisy(0.8)
    found = ranking_stability(source, [4, 16], top=3, repeats=20, seed=5)
    assert found.kendall.shape == found.overlap.shape == (2, 20)
    upper = np.triu_indices(len(source.names), 1)
    samples = source.resampling_scores()
    for row, count in enumerate((4, 16)):
        means = [samples.mean(0), *subsample_means(samples, 20, 5 + count, count)]
        order, *orders = (np.sign(scores[:, None] - scores)[upper] for scores in means)
        assert found.kendall[row].tolist() == pytest.approx([(order * other).mean() for other in orders], abs=1e-12)
    frame = found.to_frame()
    assert frame["samples"].tolist() == [4, 16]
    np.testing.assert_allclose(frame["kendall"], found.kendall.mean(1))
    assert (frame["kendall_low"] <= frame["kendall"]).all()
    assert (frame["kendall"] <= frame["kendall_high"]).all()
    assert frame["kendall"].is_monotonic_increasing
    assert set((found.overlap * 3).round().flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(ranking_stability(source, [16, 4], top=3, repeats=20, seed=5).kendall, found.kendall)
    assert not torch.equal(ranking_stability(source, [4, 16], top=3, repeats=20).kendall, found.kendall)


def test_samples_needed_is_the_count_from_which_on_it_is_enough():
    source = noisy(0.8)
    taus = torch.tensor([[0.92], [0.7], [0.91], [0.95]], dtype=torch.float64)
    found = RankingStability([2, 4, 8, 16], taus, taus, 3, 0.95, source.meta)
    assert found.samples_needed() == 8
    assert found.samples_needed(0.93) == 16
    assert found.samples_needed(0.96) is None


def test_counts_are_powers_of_two_below_the_number_of_samples():
    assert ranking_stability(noisy(1.0, samples=32), top=2, repeats=2).counts == [2, 4, 8, 16]
    assert ranking_stability(noisy(1.0, samples=33), top=2, repeats=2).counts == [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("samples", "arguments", "words"),
    [
        (32, {"counts": [8, 32]}, "counts"),
        (32, {"counts": []}, "counts"),
        (32, {"counts": [0]}, "count"),
        (32, {"top": 10}, "top"),
        (32, {"top": 2, "repeats": 0}, "repeats"),
        (2, {"top": 2}, "3 samples"),
    ],
)
def test_impossible_counts_are_refused(samples, arguments, words):
    with pytest.raises(ValueError, match=words):
        ranking_stability(noisy(1.0, samples=samples), **arguments)


def test_allocation_stability_makes_the_same_allocation_from_each_resample():
    source = noisy(0.8)
    options = {"rank": 6, "temperature": 0.8, "max_rank": 16, "exclude_modules": "layers.1.q_proj"}
    allocation = allocate(source, **options).edit({"layers.0.k_proj": 3})
    found = allocation_stability(source, allocation, samples=5, resamples=12, seed=4)
    rows = bootstrap_means(source.per_sample.numpy(), 12, seed=4, draws=5)
    for row, ranks in zip(rows, found.ranks.tolist(), strict=True):
        # float64 scores that survive float32, so that the allocation made alone sees the same numbers
        alone = sensitivity(row)
        expected = allocate(alone, **options).edit({"layers.0.k_proj": 3})
        assert ranks == pytest.approx(list(expected.ranks.values()), abs=1)
        assert sum(ranks) == allocation.budget_total
    assert (found.ranks[:, list(allocation.ranks).index("layers.0.k_proj")] == 3).all()


def test_modules_that_are_dropped_may_get_a_rank_in_resamples():
    source = noisy(0.8)
    allocation = allocate(source, rank=1, min_rank=0)
    assert allocation.dropped
    found = allocation_stability(source, allocation, resamples=40)
    assert list(found.allocation.values()) == [allocation.ranks.get(name, 0) for name in source.names]
    assert (found.ranks.sum(1) == allocation.budget_total).all()
    columns = [source.names.index(name) for name in allocation.dropped]
    assert 0 < (found.ranks[:, columns] > 0).float().mean() < 1


def test_the_table_of_allocation_stability():
    source = noisy(0.8)
    allocation = allocate(source, rank=6)
    found = allocation_stability(source, allocation, resamples=80, confidence=0.9)
    frame, ranks = found.to_frame(), found.ranks.numpy()
    assert frame["rank"].tolist() == list(allocation.ranks.values())
    np.testing.assert_allclose(frame["mean"], ranks.mean(0))
    np.testing.assert_allclose(frame["kept"], (ranks == frame["rank"].to_numpy()).mean(0))
    for column, part in (("low", 0.05), ("high", 0.95)):
        expected = np.quantile(ranks, part, axis=0, method="closest_observation")
        np.testing.assert_array_equal(frame[column], expected)
    moved = np.abs(ranks - frame["rank"].to_numpy()).sum(1) / 2 / ranks.sum(1)
    np.testing.assert_allclose(found.moved, moved)


def test_what_moves_is_counted_as_the_budget_is():
    """A rank of a wide module is worth several narrow ones, and resampled allocations have more or fewer ranks."""
    source = noisy(0.8, modules=6)
    widths = [8, 64, 8, 64, 256, 8]
    targets = {t.name: replace(t, d_out=d_out) for t, d_out in zip(source.targets.values(), widths, strict=True)}
    source = replace(source, targets=targets)
    allocation = allocate(source, rank=8, budget="parameters")
    found = allocation_stability(source, allocation, resamples=60)
    ranks, costs = found.ranks.numpy(), np.array(widths)
    assert len(set(ranks.sum(1))) > 1
    lost = (np.maximum(found.to_frame()["rank"].to_numpy() - ranks, 0) * costs).sum(1)
    np.testing.assert_allclose(found.moved, lost / allocation.budget_used)
    assert f"{100 * (lost / allocation.budget_used).mean():.1f}% of the budget moves" in repr(found)


def test_a_allocation_of_another_sensitivity_is_refused():
    with pytest.raises(ValueError, match="not made from this sensitivity"):
        allocation_stability(noisy(0.8), allocate(noisy(0.8, seed=1), rank=4))


def test_an_allocation_by_another_score_is_made_again_by_it():
    """Modules of (8, 64) and (2, 16) with scores that are equal: by the sum, the first gets sixteen times as much."""
    source = sensitivity([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [(8, 64), (2, 16)])
    by_sum = allocate(source, 4, score="sum", budget="ranks", adapt_scales=False)
    assert list(by_sum.ranks.values()) == [7, 1]
    assert list(allocate(source, 4).ranks.values()) == [6, 2]  # of equal scores, within the small one's size
    found = allocation_stability(source, by_sum, resamples=4)
    assert found.ranks.tolist() == [[7, 1]] * 4
