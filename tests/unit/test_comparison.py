"""Comparison: paired intervals, and what of a store is held against each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

import tlora
from tests.adapted import quick_collections  # noqa: F401
from tests.commands import saved, workplace  # noqa: F401
from tests.results import comparison, record, same
from tlora.comparison.store import Store
from tlora.comparison.summary import mean_interval

GRID = (1e-3, 1e-2)

# Paired intervals.


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


def table(**changes) -> tlora.Comparison:
    """LoRA and a method that is right on the same samples and one more, and another that has twice the parameters."""
    base = np.tile([1.0, 0, 1, 0], 10)
    records = []
    for rate, worth in ((1e-3, 0.5), (2e-3, 0.75), (4e-3, 0.25)):
        for method in ("lora", "mine"):
            records.append(
                record(method, rate, 0, "validation", np.repeat([1, 0], [int(4 * worth), int(4 - 4 * worth)]))
            )
    for seed in range(3):
        records.append(record("lora", 2e-3, seed, "test", np.roll(base, seed)))
        better = np.roll(base, seed)
        better[np.flatnonzero(better == 0)[:4]] = 1
        records.append(record("mine", 2e-3, seed, "test", better))
    return tlora.Comparison.of(records)


def test_summary_pairs_runs_by_seed_and_samples_with_themselves():
    frame = table().summary().set_index("method")
    assert list(table().summary().columns) == list(tlora.Comparison.summary_columns)
    lora, mine = frame.loc["lora"], frame.loc["mine"]
    assert (lora["value"], mine["value"]) == (0.5, 0.6)
    assert mine["difference"] == pytest.approx(0.1)
    assert 0 < mine["difference_low"] < 0.1 < mine["difference_high"] < 0.2
    assert mine["high"] - mine["low"] > mine["difference_high"] - mine["difference_low"]
    assert math.isnan(lora["difference"])
    assert (mine["seeds"], mine["learning_rate"], mine["baseline_rank"], mine["metric"]) == (3, 2e-3, 2, "accuracy")
    assert (mine["seconds"], mine["peak_bytes"], mine["failed"]) == (2.5, 1e9, 0)


def test_summary_of_the_loss_is_turned_round():
    frame = table().summary(metric="loss").set_index("method")
    assert frame.loc["mine", "metric"] == "negative_loss"
    assert frame.loc["mine", "value"] == pytest.approx(-0.4, abs=1e-3)
    assert frame.loc["mine", "difference"] == pytest.approx(0.1, abs=1e-3)


def test_tasks_of_loss_alone_are_chosen_by_it_and_higher_is_better():
    records = [
        record("lora", r, 0, "validation", [v], metric="loss") for r, v in ((1e-3, 0.1), (2e-3, 0.4), (4e-3, 0.3))
    ]
    records.append(record("lora", 2e-3, 0, "test", [0.5, 0.25], metric="loss"))
    found = tlora.Comparison.of(records)
    assert set(found.runs["metric"]) == {"negative_loss"}
    assert found.runs["value"].tolist() == pytest.approx([-0.9, -0.6, -0.7, -0.625])
    assert found.runs["best_rate"].tolist() == [False, False, False, True]
    assert found.summary().loc[0, "value"] == pytest.approx(-0.625)


def test_at_equal_parameters_the_nearest_rank_of_the_baseline_counts():
    records = []
    for method, rank, size in (("lora", 2, 100), ("lora", 4, 200), ("mine", 4, 110), ("mine", 8, 220)):
        for split in ("validation", "test"):
            one = record(method, 1e-3, 0, split, [rank / 10, 0], rank=rank)
            records.append(one | {"trainable_parameters": size})
    records += [record(m, 2e-3, 0, "validation", [0], rank=r) for m, r in (("lora", 2), ("mine", 8))]
    found = tlora.Comparison.of(records)
    frame = found.summary(baseline_rank="nearest").set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 2
    assert frame.loc[("mine", 8), "baseline_rank"] == 4
    assert frame.loc[("mine", 8), "difference"] == pytest.approx(0.2, abs=1e-3)
    frame = found.summary(baseline_rank="same").set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 4
    assert math.isnan(frame.loc[("mine", 8), "baseline_rank"])
    assert math.isnan(frame.loc[("mine", 8), "difference"])
    frame = found.summary(baseline_rank=2).set_index(["method", "rank"])
    assert frame["baseline_rank"].dropna().to_dict() == {("lora", 4): 2, ("mine", 4): 2, ("mine", 8): 2}
    assert frame.loc[("mine", 8), "difference"] == pytest.approx(0.3, abs=1e-3)
    for wrong in (8, True, "equal"):
        with pytest.raises(ValueError, match=r"choose 'same', 'nearest' .* \(2, 4\)"):
            found.summary(baseline_rank=wrong)


def test_only_seeds_that_both_have_are_paired():
    records = [record(m, r, 0, "validation", [r]) for m in ("lora", "mine") for r in (1e-3, 2e-3)]
    for method, seeds, worth in (("lora", (0, 1), 0), ("mine", (1, 2), 1)):
        records += [record(method, 2e-3, seed, "test", [worth, seed == 2]) for seed in seeds]
    row = tlora.Comparison.of(records).summary().set_index("method").loc["mine"]
    assert row["value"] == 0.75
    assert row["difference"] == 0.5  # of seed 1 alone
    assert row["seeds"] == 2
    assert row["low"] < row["value"] < row["high"]
    assert row[["difference_low", "difference_high"]].isna().all()  # one pair says nothing of others


def test_a_method_that_never_trained_is_in_the_summary():
    records = [record("lora", rate, 0, "validation", None) for rate in (1e-3, 2e-3)]
    row = tlora.Comparison.of(records).summary().iloc[0]
    assert (row["seeds"], row["failed"]) == (0, 2)
    assert math.isnan(row["value"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"baseline": "dora"}, "'dora' was not compared: choose one of lora, tlora"),
        ({"baseline_rank": "seconds"}, "choose 'same', 'nearest'"),
        ({"metric": "f1"}, "pass 'loss'"),
        ({"confidence": 95}, "above 0 and below 1"),
    ],
)
def test_summary_refuses_what_is_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        comparison().summary(**arguments)


def test_flatness_is_the_range_around_the_best_rate():
    values = {5e-4: 0.7, 1e-3: 0.796, 2e-3: 0.8, 4e-3: 0.795, 8e-3: 0.4, 1.6e-2: 0.799}
    found = tlora.Comparison.of([record("lora", r, 0, "validation", [v]) for r, v in values.items()])
    row = found.flatness().iloc[0]
    assert (row["best"], row["lowest"], row["highest"], row["doublings"]) == (2e-3, 1e-3, 4e-3, 2)
    assert row["edge"] == ""
    assert list(found.flatness().columns) == list(tlora.Comparison.flatness_columns)
    assert found.flatness(0).iloc[0]["doublings"] == 0
    assert found.flatness(0.9).iloc[0]["edge"] == "low and high"
    assert found.flatness(0.2).iloc[0]["edge"] == "low"
    with pytest.raises(ValueError, match="share=-1"):
        found.flatness(-1)


def test_flatness_is_of_the_mean_of_all_whole_searches():
    """Each search alone has a lone peak; seed 3 lacks a rate and counts nowhere; seed 2 diverged at the highest."""
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    values = {0: (0.50, 0.80, 0.78, 0.76), 1: (0.51, 0.77, 0.79, 0.76), 2: (0.49, 0.78, 0.80, None), 3: (0.9, 0.9, 0.9)}
    records = [
        record("lora", rate, seed, "validation", None if value is None else [value])
        for seed, curve in values.items()
        for rate, value in zip(grid, curve, strict=False)
    ]
    assert tlora.Comparison.of(records[:4]).flatness().iloc[0][["seeds", "doublings"]].tolist() == [1, 0]
    row = tlora.Comparison.of(records).flatness().iloc[0]
    assert row[["seeds", "best", "lowest", "highest"]].tolist() == [3, 4e-3, 2e-3, 4e-3]
    wide = tlora.Comparison.of(records).flatness(0.5).iloc[0]
    assert (wide["lowest"], wide["highest"]) == (1e-3, 4e-3)


def test_read_takes_what_was_begun_last_under_a_name(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for steps in (3, 9):
        for rate in GRID:
            store.append(record("lora", rate, 0, "validation", [steps / 10], steps=steps))
    found = tlora.Comparison.read(store.path)
    assert found.runs["value"].tolist() == [0.9, 0.9]
    assert found.meta.recipe["steps"] == 9
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="holds no runs"):
        tlora.Comparison.read(tmp_path / "empty")


def test_read_compares_only_what_has_data_and_training_in_common(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for method, changes in (
        ("lora", {"steps": 3}),
        ("dora", {"data": {"seed": 1}, "steps": 9}),
        ("mine", {"steps": 9}),
    ):
        for split in ("validation", "test"):
            store.append(record(method, 1e-3, 0, split, [0.5, 1], **changes))
    store.append(record("lora", 1e-3, 0, "test", [0.5, 1], task="another"))
    with pytest.warns(UserWarning, match="left out") as told:
        found = tlora.Comparison.read(store.path)
    assert found.runs[["method", "task"]].drop_duplicates().values.tolist() == [["mine", "pairs"], ["lora", "another"]]
    assert [str(w.message).partition(";")[0] for w in told] == [
        "runs of lora on pairs are left out, for they cannot be compared: steps is 3 there and 9 where they were begun "
        "last",
        "runs of dora on pairs are left out, for they cannot be compared: data is {'seed': 1} there and {'seed': 0} "
        "where they were begun last",
    ]


def test_read_gives_what_was_asked_for(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for method, rank in (("lora", 2), ("lora", 4), ("mine", 4)):
        store.append(record(method, 1e-3, 0, "validation", [1], rank=rank))
    found = tlora.Comparison.read(store.path, methods=["lora"], ranks=[4], tasks=["pairs"])
    assert found.runs[["method", "rank"]].values.tolist() == [["lora", 4]]
    assert same(tlora.Comparison.read(store.path, methods="lora", ranks=np.int64(4), tasks="pairs"), found)
    for wrong, words in (
        ({"methods": ["nosuch"]}, "no runs of method nosuch .* only of lora, mine"),
        ({"methods": ["mine"], "ranks": [2]}, "no runs of rank 2 among those asked for, only of 4"),
        ({"tasks": ["gsm8k"]}, "no runs of task gsm8k .* only of pairs"),
    ):
        with pytest.raises(ValueError, match=words):
            tlora.Comparison.read(store.path, **wrong)


def test_the_nearest_rank_is_one_that_was_finished():
    records = [record("lora", 1e-3, 0, "validation", None, rank=2)]
    for method in ("lora", "mine"):
        records += [record(method, 1e-3, 0, split, [0.5, 1], rank=4) for split in ("validation", "test")]
    frame = tlora.Comparison.of(records).summary(baseline_rank="nearest").set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 4
    assert frame.loc[("mine", 4), "difference"] == 0
