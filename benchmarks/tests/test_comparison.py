"""Comparison: summaries, intervals of paired differences, and ranges of learning rates."""

import math

import numpy as np
import pytest

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import pack
from benchmarks.tests.helpers import comparison, record
from tlora.comparison.interval import paired_interval


def table(**changes) -> Comparison:
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
    return Comparison.from_records(records)


def test_summary_pairs_runs_by_seed_and_samples_with_themselves():
    frame = table().summary().set_index("method")
    assert list(table().summary().columns) == list(Comparison.summary_columns)
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
    found = Comparison.from_records(records)
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
    found = Comparison.from_records(records)
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


def test_only_seeds_that_both_have_are_paired():
    records = [record(m, r, 0, "validation", [r]) for m in ("lora", "mine") for r in (1e-3, 2e-3)]
    for method, seeds, worth in (("lora", (0, 1), 0), ("mine", (1, 2), 1)):
        records += [record(method, 2e-3, seed, "test", [worth, seed == 2]) for seed in seeds]
    row = Comparison.from_records(records).summary().set_index("method").loc["mine"]
    assert row["value"] == 0.75
    assert row["difference"] == 0.5  # of seed 1 alone
    assert row["seeds"] == 2
    assert row["low"] < row["value"] < row["high"]
    assert row[["difference_low", "difference_high"]].isna().all()  # one pair says nothing of others


def test_a_method_that_never_trained_is_in_the_summary():
    records = [record("lora", rate, 0, "validation", None) for rate in (1e-3, 2e-3)]
    row = Comparison.from_records(records).summary().iloc[0]
    assert (row["seeds"], row["failed"]) == (0, 2)
    assert math.isnan(row["value"])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"baseline": "dora"}, "baseline"),
        ({"baseline_rank": "seconds"}, "baseline_rank"),
        ({"baseline_rank": 99}, "99"),
    ],
)
def test_summary_refuses_a_baseline_that_was_not_compared(arguments, name):
    with pytest.raises(ValueError, match=name):
        comparison().summary(**arguments)


def test_intervals_are_those_of_the_race():
    """By hand for a method: `paired_interval` of its outcomes less LoRA's, seed by seed and sample by sample."""
    runs = table()
    grids = {
        method: np.array([runs.outcomes[f"{row}.accuracy"].double().numpy() for row in rows.index])
        for method, rows in runs.runs[runs.runs["best_rate"]].groupby("method")
    }
    row = runs.summary(confidence=0.9).set_index("method").loc["mine"]
    _, low, high = paired_interval(grids["mine"] - grids["lora"], 0.1)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high))
    assert (row["low"], row["high"]) == pytest.approx(paired_interval(grids["mine"], 0.1)[1:])


def test_flatness_is_the_range_around_the_best_rate():
    values = {5e-4: 0.7, 1e-3: 0.799, 2e-3: 0.8, 4e-3: 0.7985, 8e-3: 0.4, 1.6e-2: 0.799}  # the loss is 1 - value
    found = Comparison.from_records([record("lora", r, 0, "validation", [v]) for r, v in values.items()])
    row = found.flatness().iloc[0]
    assert (row["best"], row["lowest"], row["highest"], row["doublings"]) == (2e-3, 1e-3, 4e-3, 2)
    assert row["edge"] == ""
    assert list(found.flatness().columns) == list(Comparison.flatness_columns)
    assert found.flatness(0).iloc[0]["doublings"] == 0
    assert found.flatness(5).iloc[0]["edge"] == "low and high"
    assert found.flatness(0.9).iloc[0]["edge"] == "low"


def test_flatness_is_of_the_mean_of_all_whole_searches():
    """Each search alone has a lone peak; seed 3 lacks a rate and counts nowhere; seed 2 diverged at the highest."""
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    values = {0: (0.50, 0.80, 0.78, 0.76), 1: (0.51, 0.77, 0.79, 0.76), 2: (0.49, 0.78, 0.80, None), 3: (0.9, 0.9, 0.9)}
    records = [
        record("lora", rate, seed, "validation", None if value is None else [value])
        for seed, curve in values.items()
        for rate, value in zip(grid, curve, strict=False)
    ]
    assert Comparison.from_records(records[:4]).flatness().iloc[0][["seeds", "doublings"]].tolist() == [1, 0]
    row = Comparison.from_records(records).flatness(0.05).iloc[0]
    assert row[["seeds", "best", "lowest", "highest"]].tolist() == [3, 4e-3, 2e-3, 4e-3]
    wide = Comparison.from_records(records).flatness(2).iloc[0]
    assert (wide["lowest"], wide["highest"]) == (1e-3, 4e-3)


def test_seconds_to_the_loss_that_the_baseline_ends_with():
    """Running means over two of twenty steps: `mine` comes to 1.0 at its 11th step of 2.5 s, `slow` never."""
    curves = {
        "lora": np.linspace(2.9, 1.0, 20) - 0.05,  # the last two: 1.05 and 0.95
        "mine": np.r_[np.full(9, 3.0), np.full(11, 1.0)],
        "slow": np.full(20, 1.5),
    }
    records = [record(m, r, 0, "validation", [r]) for m in curves for r in (1e-3, 2e-3)]
    for method, losses in curves.items():
        for seed in (0, 1):
            one = record(method, 2e-3, seed, "test", [0, 1])
            records.append(one | {"outcomes": one["outcomes"] | {"training": pack(losses)}})
    found = Comparison.from_records(records).summary().set_index("method")["seconds_to_baseline"]
    assert found["mine"] == pytest.approx(0.5 + 2.5 * 11 / 20)
    assert found["lora"] == pytest.approx(0.5 + 2.5)
    assert math.isnan(found["slow"])


def test_the_nearest_rank_is_one_that_was_finished():
    records = [record("lora", 1e-3, 0, "validation", None, rank=2)]
    for method in ("lora", "mine"):
        records += [record(method, 1e-3, 0, split, [0.5, 1], rank=4) for split in ("validation", "test")]
    frame = Comparison.from_records(records).summary(baseline_rank="nearest").set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 4
    assert frame.loc[("mine", 4), "difference"] == 0


def test_a_single_test_sample_says_nothing_of_others() -> None:
    records = [
        record(method, rate, seed, split, [value])
        for method, value in (("lora", 0.0), ("captured", 1.0))
        for split, rates, seeds in (("validation", (1e-3, 2e-3), (0,)), ("test", (2e-3,), (0, 1)))
        for rate in rates
        for seed in seeds
    ]
    row = Comparison.from_records(records).summary().set_index("method").loc["captured"]
    assert row["difference"] == 1.0
    assert np.isnan(row["difference_low"])
    assert np.isnan(row["difference_high"])


def test_repr_counts_methods_tasks_and_runs():
    assert repr(comparison()) == "Comparison(2 methods (lora, captured) on 1 tasks, 12 runs, 1 failed)"
