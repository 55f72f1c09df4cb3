"""Stability of rankings and allocations, against SciPy and against allocations made one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers.sensitivities import sensitivity
from tlora.allocation.allocate import allocate
from tlora.allocation.stability import allocation_stability, rank_intervals, ranking_stability
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
    table = ranking_stability(source, [16, 4], top=3, repeats=20, confidence=0.9, seed=5)
    assert table["samples"].tolist() == [4, 16]
    assert set(table["top"]) == {3}
    samples = source.resampling_scores()
    upper = np.triu_indices(len(source.names), 1)
    for count, row in table.set_index("samples").iterrows():
        means = [samples.mean(0), *subsample_means(samples, 20, 5 + count, count)]
        order, *orders = (np.sign(scores[:, None] - scores)[upper] for scores in means)
        best, *others = ({*np.argsort(-scores, kind="stable")[:3]} for scores in means)
        taus = [(order * subsample).mean() for subsample in orders]
        overlaps = [len(best & others_best) / 3 for others_best in others]
        for name, values in (("kendall", taus), ("overlap", overlaps)):
            expected = [np.mean(values), *np.quantile(values, [0.05, 0.95])]
            assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == pytest.approx(expected, abs=1e-12)
    assert table["kendall"].is_monotonic_increasing
    other_seed = ranking_stability(source, [4, 16], top=3, repeats=20, confidence=0.9)
    assert other_seed["kendall"].tolist() != table["kendall"].tolist()


def test_counts_are_powers_of_two_below_the_number_of_samples():
    assert ranking_stability(noisy(1.0, samples=32), top=2, repeats=2)["samples"].tolist() == [2, 4, 8, 16]
    assert ranking_stability(noisy(1.0, samples=33), top=2, repeats=2)["samples"].tolist() == [2, 4, 8, 16, 32]


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


def allocated_one_by_one(source, draws, resamples, seed, edits, **options):
    """Ranks of an allocation from each resample, made by itself."""
    rows = bootstrap_means(source.per_sample.numpy(), resamples, seed=seed, draws=draws)
    resampled = [replace(source, per_sample=torch.tensor(row, dtype=torch.float32)[None]) for row in rows]
    allocations = [allocate(scores, **options).edit(edits) for scores in resampled]
    return np.array([[allocation.ranks.get(name, 0) for name in allocation.scores] for allocation in allocations])


def test_rank_intervals_are_those_of_the_same_allocation_from_each_resample():
    source = noisy(0.8)
    options, edits = {"rank": 6, "temperature": 0.8, "max_rank": 16}, {"layers.0.k_proj": 3}
    allocation = allocate(source, exclude_modules="layers.1.q_proj", **options).edit(edits)
    table = rank_intervals(source, allocation, samples=5, resamples=40, confidence=0.9, seed=4)
    ranks = allocated_one_by_one(source, 5, 40, 4, edits, exclude_modules="layers.1.q_proj", **options)
    assert table["module"].tolist() == [name for name in source.names if name != "layers.1.q_proj"]
    assert table["rank"].tolist() == list(allocation.ranks.values())
    # Scores are float32 in an allocation made by itself: a rank may differ by one.
    np.testing.assert_allclose(table["mean"], ranks.mean(0), atol=0.1)
    np.testing.assert_allclose(table["deviation"], ranks.std(0), atol=0.1)
    np.testing.assert_allclose(table["kept"], (ranks == table["rank"].to_numpy()).mean(0), atol=0.1)
    for column, part in (("low", 0.05), ("high", 0.95)):
        expected = np.quantile(ranks, part, axis=0, method="closest_observation")
        np.testing.assert_allclose(table[column], expected, atol=1)
    edited = table.set_index("module").loc["layers.0.k_proj"]
    assert edited[["rank", "low", "high", "mean", "kept"]].tolist() == [3, 3, 3, 3, 1]


def test_modules_that_are_dropped_may_get_a_rank_in_resamples():
    source = noisy(0.8)
    allocation = allocate(source, rank=1, min_rank=0)
    assert allocation.dropped
    table = rank_intervals(source, allocation, resamples=40).set_index("module")
    assert table["rank"].tolist() == [allocation.ranks.get(name, 0) for name in source.names]
    assert table["mean"].sum() == pytest.approx(allocation.budget_total)
    dropped = table.loc[allocation.dropped]
    assert dropped["mean"].sum() > 0
    assert dropped["kept"].max() > 0


def test_the_share_that_moves_is_that_of_resampled_allocations():
    source = noisy(0.8)
    allocation = allocate(source, rank=6)
    table = allocation_stability(source, allocation, [32, 5], resamples=80, confidence=0.9, seed=2)
    assert table["samples"].tolist() == [5, 32]
    nominal = np.array(list(allocation.ranks.values()))
    for count, row in table.set_index("samples").iterrows():
        ranks = allocated_one_by_one(source, count, 80, 2, {}, rank=6)
        moved = np.abs(ranks - nominal).sum(1) / 2 / ranks.sum(1)
        expected = [moved.mean(), *np.quantile(moved, [0.05, 0.95])]
        np.testing.assert_allclose(row[["moved", "moved_low", "moved_high"]], expected, atol=1 / nominal.sum())
    assert allocation_stability(source, allocation, resamples=2)["samples"].tolist() == [32]


def test_what_moves_is_counted_as_the_budget_is():
    """A rank of a wide module is worth several narrow ones, and resampled allocations have more or fewer ranks."""
    source, widths = noisy(0.8, modules=6), [8, 64, 8, 64, 256, 8]
    targets = {t.name: replace(t, d_out=d_out) for t, d_out in zip(source.targets.values(), widths, strict=True)}
    source = replace(source, targets=targets)
    allocation = allocate(source, rank=8, budget="parameters")
    ranks = allocated_one_by_one(source, 32, 60, 0, {}, rank=8, budget="parameters")
    assert len(set(ranks.sum(1))) > 1
    lost = np.maximum(list(allocation.ranks.values()) - ranks, 0) @ widths / allocation.budget_used
    row = allocation_stability(source, allocation, resamples=60).iloc[0]
    assert row["moved"] == pytest.approx(lost.mean(), rel=0.02)
    assert row["moved_high"] == pytest.approx(np.quantile(lost, 0.975), rel=0.02)


def test_an_allocation_of_another_sensitivity_is_refused():
    with pytest.raises(ValueError, match="not made from this sensitivity"):
        allocation_stability(noisy(0.8), allocate(noisy(0.8, seed=1), rank=4))


def test_an_allocation_by_another_score_is_made_again_by_it():
    """Modules of (8, 64) and (2, 16) with scores that are equal: by the sum, the first gets sixteen times as much."""
    source = sensitivity([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [(8, 64), (2, 16)])
    by_sum = allocate(source, 4, score="sum", budget="ranks", adapt_scales=False)
    assert list(by_sum.ranks.values()) == [7, 1]
    assert list(allocate(source, 4).ranks.values()) == [6, 2]  # of equal scores, within the small one's size
    table = rank_intervals(source, by_sum, resamples=4)
    assert table[["low", "high"]].to_numpy().tolist() == [[7, 7], [1, 1]]
