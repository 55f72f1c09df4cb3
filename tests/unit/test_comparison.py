"""Comparison: the search for a rate, the store, the runs, paired intervals; tiny models for the runs themselves."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import mmap
import os
import shutil
import subprocess
import sys
from io import FileIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from datasets import Dataset

import tlora
from tests.adapted import quick_collections  # noqa: F401
from tests.commands import saved, workplace  # noqa: F401
from tests.helpers import tiny_model
from tests.results import comparison, record
from tlora import bench, rates
from tlora import comparison as comparing
from tlora.compared import LISTED
from tlora.job import Memory
from tlora.methods import METHODS, Method
from tlora.outcomes import outcomes, packed, unpacked
from tlora.peak import PeakMemory
from tlora.recipes import Recipe
from tlora.resampling import bootstrap_grid_means
from tlora.store import Store, key_text

QUICK = {"ranks": 2, "steps": 3, "batch_size": 4, "samples": 8, "seeds": (0, 1), "progress": False}
GRID = (1e-3, 1e-2)
ROOT = Path(__file__).parents[2]

# The search for a learning rate.


def bump(centre: float):
    """A smooth objective of one peak on a log scale."""
    return lambda rate: -abs(math.log(rate / centre))


@pytest.mark.parametrize("centre", [1e-6, 7e-5, 1e-3, 3e-3, 0.3])
@pytest.mark.parametrize("grid", [(1e-3, 2e-3, 4e-3), (4e-3, 1e-3, 2e-3), (1e-3, 1e-2)])
def test_grid_is_widened_until_the_best_rate_is_inside(centre, grid):
    values = rates.search(bump(centre), grid)
    found, factor = rates.best(values), sorted(grid)[1] / sorted(grid)[0]
    assert values.keys() >= set(grid)
    if centre > 1e-5 or factor > 2:
        assert min(values) < found < max(values)
        assert abs(math.log(found / centre)) <= math.log(factor)
        assert rates.beyond(values) is None
    steps = [b / a for a, b in itertools.pairwise(sorted(values))]
    assert steps == pytest.approx([factor] * len(steps), rel=0.01)


def test_a_search_that_never_ends_is_given_up():
    values = rates.search(lambda rate: rate, GRID)
    assert len(values) == len(GRID) + rates.WIDENINGS
    assert rates.beyond(values) is not None


def test_rates_that_diverge_are_no_reason_to_go_higher():
    values = rates.search(lambda rate: rate if rate < 3e-3 else -math.inf, (1e-3, 2e-3, 4e-3))
    assert rates.best(values) == 2e-3
    assert len(values) == 3
    lower = rates.search(lambda rate: -math.inf if rate > 2e-4 else -rate / 1e-4 - 1e-4 / rate, (1e-3, 2e-3))
    assert rates.best(lower) == pytest.approx(1.25e-4)
    assert rates.best(dict.fromkeys((1e-3, 2e-3), math.nan)) is None


def test_of_equals_the_middle_one_is_chosen():
    assert rates.best(dict.fromkeys((1e-3, 2e-3, 4e-3), 0.5)) == 2e-3


@pytest.mark.parametrize("grid", [(), (1e-3,), (1e-3, 1e-3), (0.0, 1e-3), (-1.0, 1.0), (math.inf, 1.0), ("a", "b")])
def test_grids_that_are_none_are_refused(grid):
    with pytest.raises(ValueError, match=r"learning.rate"):
        rates.search(bump(1), grid)


# The store.


def filled(path: Path, count: int = 3) -> Store:
    store = Store(path)
    for n in range(count):
        store.append(record("lora", 1e-3, n, "validation", [n]))
    return store


def test_store_is_plain_lines_and_the_last_run_of_a_key_counts(tmp_path):
    store = filled(tmp_path / "new" / "runs.jsonl")
    lines = store.path.read_text().splitlines()
    assert [json.loads(line)["key"]["seed"] for line in lines] == [0, 1, 2]
    again = record("lora", 1e-3, 1, "validation", [9])
    store.append(again)
    assert store.path.read_text().splitlines()[:3] == lines
    assert [r["metrics"]["accuracy"] for r in store.read()] == [0, 9, 2]
    assert store.find()[key_text(again["key"])] == again


@pytest.mark.parametrize("torn", [1, 40, 5000])
def test_a_torn_last_line_is_left_out_with_a_warning_and_cut_off_by_the_next(tmp_path, torn):
    store = filled(tmp_path / "runs.jsonl")
    whole = store.path.read_bytes()
    line = json.dumps(record("lora", 1e-3, 7, "test", np.linspace(0, 1, 5000))).encode()
    store.path.write_bytes(whole + line[:torn])
    with pytest.warns(UserWarning, match=rf"last line is torn \({torn} bytes\)"):
        assert len(store.read()) == 3
    store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.read_bytes().startswith(whole)
    assert [r["key"]["seed"] for r in store.read()] == [0, 1, 2, 7]


def test_a_store_that_is_one_torn_line(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    store.path.write_text('{"key"')
    with pytest.warns(UserWarning, match="torn"):
        assert store.read() == []
    store.append(record("lora", 1e-3, 0, "validation", [1]))
    assert len(store.read()) == 1


def test_damage_elsewhere_is_refused_with_its_line(tmp_path):
    store = filled(tmp_path / "runs.jsonl")
    for damage in (b"{]\n", b'{"metrics": {}}\n', b"3\n"):
        store.path.write_bytes(damage + store.path.read_bytes())
        with pytest.raises(ValueError, match=r"runs.jsonl:1 is no run"):
            store.read()
    with pytest.raises(FileNotFoundError, match=r"no runs in .*store="):
        Store(tmp_path / "none").read()
    assert Store(tmp_path / "none").find() == {}


def test_numbers_that_json_has_no_word_for_do_not_reach_the_store(tmp_path):
    store = filled(tmp_path / "runs.jsonl")
    before = store.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append({"key": {}, "loss": math.nan})
    assert store.path.read_bytes() == before


def test_each_line_is_checked_and_those_without_checksum_are_taken_if_they_are_of_before(tmp_path):
    store = filled(tmp_path / "runs.jsonl")
    text = store.path.read_text()
    for old, new in (
        ('"accuracy": 1.0', '"accuracy": 3.0'),
        ('"checksum"', '"checksun"'),
        ('"checksum": "', '"checksum": "0'),
    ):
        store.path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"runs.jsonl:[12] is no run .*checksum.*take the line out"):
            store.read()
    before = [json.dumps(record("lora", 1e-3, n, "validation", [n])) + "\n" for n in range(3)]
    store.path.write_text("".join(before))
    assert store.read() == [record("lora", 1e-3, n, "validation", [n]) for n in range(3)]
    store.append(record("lora", 1e-3, 1, "validation", [9]))
    assert store.path.read_text().startswith("".join(before))
    assert [r["metrics"]["accuracy"] for r in store.read()] == [0, 9, 2]


@pytest.mark.parametrize("room", [0, 1, 500])
def test_a_full_disk_leaves_the_runs_before(tmp_path, monkeypatch, room):
    class Full(FileIO):
        def write(self, data):
            if self.tell() >= size + room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:room])

    store = filled(tmp_path / "runs.jsonl")
    size = store.path.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr("tlora.store.FileIO", Full)
        with pytest.raises(OSError, match=r"No space left on device \(the runs before are there.*\): '.*runs.jsonl'"):
            store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.stat().st_size == size
    assert len(store.read()) == 3


def test_two_processes_append_at_once(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tlora'); from store import Store; s = Store(sys.argv[1])\n"  # its room alone
        "for n in range(30): s.append({'key': [sys.argv[2], n], 'data': 'x' * 20000})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs.jsonl")]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(Store(tmp_path / "runs.jsonl").read()) == 60


# Outcomes.


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_outcomes_come_back(count):
    rng = np.random.default_rng(count)
    bits, floats = rng.integers(0, 2, count).astype(float), rng.normal(size=count)
    assert np.array_equal(unpacked(json.loads(json.dumps(packed(bits)))), bits)
    assert np.array_equal(unpacked(packed(floats)), floats.astype(np.float16).astype(float))
    assert packed(bits)["kind"] == "bits"
    assert len(packed(bits)["data"]) <= count / 6 + 4
    assert np.isfinite(unpacked(packed(np.array([1e30, -1e30])))).all()
    with pytest.raises(ValueError, match="changed by hand"):
        unpacked(packed(floats) | {"count": count + 8})


def tiny_task(family: str) -> tlora.Task:
    from tests.helpers import tiny_tokenizer
    from tests.unit.test_methods import LABELS, PAIRS

    rows = LABELS if family == "bert" else PAIRS
    parts = {"train": rows[:4], "validation": rows[15:20], "test": rows[4:15]}
    architecture = "seq2seq" if family == "t5" else None
    splits = {k: Dataset.from_list(v) for k, v in parts.items()}
    return tlora.load_task(splits, tiny_tokenizer(), architecture=architecture)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_outcomes_are_what_the_metrics_are_the_means_of(family):
    from tests.helpers import tiny_model

    model, task = tiny_model(family), tiny_task(family)
    found = outcomes(model, task, "test", batch_size=3)
    expected = task.evaluate(model, "test")
    for name, values in found.per_sample.items():
        assert len(values) == 11
        assert values.mean() == pytest.approx(expected[name], rel=1e-5)
        assert found.metrics[name] == pytest.approx(expected[name], rel=1e-5)
    assert found.per_sample.keys() == {"loss", task.metric}
    with torch.no_grad():  # of one sample alone, as the model itself says it
        batch = task.collate([task.test[3]])
        loss, tokens = model(**batch).loss.item(), int((batch["labels"] != -100).sum())
    all_tokens = sum(int((task.collate([row])["labels"] != -100).sum()) for row in task.test)
    assert found.per_sample["loss"][3] == pytest.approx(loss * tokens * 11 / all_tokens, rel=1e-4)


# Paired intervals.


def test_over_samples_alone_it_is_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 300)).astype(float)
    b[:200] = a[:200]  # as methods that agree on most
    expected = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, method="percentile", n_resamples=20000, rng=1
    )
    found = bootstrap_grid_means((a - b)[None], 20000, seed=2)
    low, high = np.quantile(found, [0.025, 0.975])
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)
    assert found.std() == pytest.approx(expected.standard_error, rel=0.03)
    unpaired = scipy.stats.bootstrap((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), rng=1)
    assert unpaired.standard_error > 1.4 * found.std()


def test_over_runs_and_samples_it_is_the_naive_loop():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 30)) + rng.normal(size=(4, 1))
    naive = [values[rng.integers(0, 4, 4)][:, rng.integers(0, 30, 30)].mean() for _ in range(4000)]
    found = bootstrap_grid_means(values, 4000, seed=1)
    assert found.mean() == pytest.approx(np.mean(naive), abs=0.03)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.08)
    assert np.array_equal(bootstrap_grid_means(values, 50, seed=3), bootstrap_grid_means(values, 50, seed=3))


def test_resamples_are_made_in_parts_where_they_are_large():
    assert bootstrap_grid_means(np.ones((2, 3_000_000)), 3, seed=0) == pytest.approx([1, 1, 1])


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
    frame = table().summary(resamples=500).set_index("method")
    assert list(table().summary(resamples=5).columns) == list(tlora.Comparison.summary_columns)
    lora, mine = frame.loc["lora"], frame.loc["mine"]
    assert (lora["value"], mine["value"]) == (0.5, 0.6)
    assert mine["difference"] == pytest.approx(0.1)
    assert 0 < mine["difference_low"] < 0.1 < mine["difference_high"] < 0.2
    assert mine["high"] - mine["low"] > mine["difference_high"] - mine["difference_low"]
    assert math.isnan(lora["difference"])
    assert (mine["seeds"], mine["learning_rate"], mine["baseline_rank"], mine["metric"]) == (3, 2e-3, 2, "accuracy")
    assert (mine["seconds"], mine["peak_bytes"], mine["failed"]) == (2.5, 1e9, 0)


def test_summary_of_the_loss_is_turned_round():
    frame = table().summary(metric="loss", resamples=50).set_index("method")
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
    frame = found.summary(baseline_rank="nearest", resamples=10).set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 2
    assert frame.loc[("mine", 8), "baseline_rank"] == 4
    assert frame.loc[("mine", 8), "difference"] == pytest.approx(0.2, abs=1e-3)
    frame = found.summary(baseline_rank="same", resamples=10).set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 4
    assert math.isnan(frame.loc[("mine", 8), "baseline_rank"])
    assert math.isnan(frame.loc[("mine", 8), "difference"])
    frame = found.summary(baseline_rank=2, resamples=10).set_index(["method", "rank"])
    assert frame["baseline_rank"].dropna().to_dict() == {("lora", 4): 2, ("mine", 4): 2, ("mine", 8): 2}
    assert frame.loc[("mine", 8), "difference"] == pytest.approx(0.3, abs=1e-3)
    for wrong in (8, True, "equal"):
        with pytest.raises(ValueError, match=r"choose 'same', 'nearest' .* \(2, 4\)"):
            found.summary(baseline_rank=wrong)


def test_only_seeds_that_both_have_are_paired():
    records = [record(m, r, 0, "validation", [r]) for m in ("lora", "mine") for r in (1e-3, 2e-3)]
    for method, seeds, worth in (("lora", (0, 1), 0), ("mine", (1, 2), 1)):
        records += [record(method, 2e-3, seed, "test", [worth, seed == 2]) for seed in seeds]
    row = tlora.Comparison.of(records).summary(resamples=20).set_index("method").loc["mine"]
    assert row["value"] == 0.75
    assert row["difference"] == 0.5  # of seed 1 alone
    assert row["seeds"] == 2


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
        ({"confidence": 95}, "between 0 and 1"),
        ({"resamples": 0}, "resamples=0"),
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
    assert not row["edge"]
    assert list(found.flatness().columns) == list(tlora.Comparison.flatness_columns)
    assert found.flatness(0).iloc[0]["doublings"] == 0
    assert found.flatness(0.9).iloc[0]["edge"]
    with pytest.raises(ValueError, match="share=-1"):
        found.flatness(-1)


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
    frame = tlora.Comparison.of(records).summary(baseline_rank="nearest", resamples=5).set_index(["method", "rank"])
    assert frame.loc[("mine", 4), "baseline_rank"] == 4
    assert frame.loc[("mine", 4), "difference"] == 0


# The runs.


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """What was really run."""
    done: list[str] = []
    real = bench.run

    def run(cell, task, rate, seed, split, memory):
        done.append(f"{cell.method.name} {rate:g} {seed} {split}")
        return real(cell, task, rate, seed, split, memory)

    monkeypatch.setattr(comparing, "run", run)
    return done


@pytest.fixture
def pretended(monkeypatch) -> list[str]:
    """What would have been run: nothing is trained, and a rate is as good as it is high."""
    done: list[str] = []

    def run(cell, task, rate, seed, split, memory):
        done.append(f"{cell.method.name} {rate:g} {seed} {split}")
        return {"key": cell.key(rate, seed, split), "status": "done", "metrics": {"loss": -rate}}

    monkeypatch.setattr(comparing, "run", run)
    return done


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Searches that are not widened: a tiny model's best rate may be anywhere."""
    monkeypatch.setattr(rates, "WIDENINGS", 0)


IGNORE_EDGE = pytest.mark.filterwarnings("ignore:.*is at the edge of what was searched")


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
@pytest.mark.parametrize(("model", "task"), [("llama", "pairs.jsonl"), ("bert", "labels.jsonl"), ("t5", "pairs.jsonl")])
def test_every_method_is_searched_then_run_with_every_seed(model, task, counted):
    found = tlora.compare(["lora", "tlora"], task, model, learning_rates=GRID, **QUICK)
    frame = found.to_frame()
    for method in ("lora", "tlora"):
        rows = frame[frame["method"] == method]
        searched, tested = rows[rows["split"] == "validation"], rows[rows["split"] == "test"]
        assert sorted(searched["learning_rate"]) == list(GRID)
        assert searched["seed"].tolist() == [0, 0]
        best = searched.loc[searched["value"].idxmax(), "learning_rate"]
        assert tested["seed"].tolist() == [0, 1]
        if searched["value"].nunique() > 1:
            assert set(tested["learning_rate"]) == {best}
        assert tested["best_rate"].all()
        assert not searched["best_rate"].any()
    assert set(frame["status"]) == {"done"}
    assert (frame["seconds"] > 0).all()
    assert (frame["peak_bytes"] > 1e8).all()
    assert set(frame["metric"]) == {"accuracy" if model == "bert" else "exact_match"}
    sizes = frame.groupby("method")["trainable_parameters"].agg(["min", "max"])
    assert (sizes["min"] == sizes["max"]).all()
    assert sizes.loc["tlora", "max"] < sizes.loc["lora", "max"]
    assert {len(values) for values in found.outcomes.values()} == {4}
    assert len(counted) == 8
    summary = found.summary(resamples=20)
    assert summary["seeds"].tolist() == [2, 2]


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_the_runs_are_the_same_whoever_makes_them(counted):
    """A second time nothing is run; from scratch, the numbers are the same."""
    first = tlora.compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert len(counted) == 4
    again = tlora.compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert len(counted) == 4
    assert again.runs.equals(first.runs)
    fresh = tlora.compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, store="other.jsonl", **QUICK)
    assert len(counted) == 8
    numbers = ["learning_rate", "seed", "value", "loss", "trainable_parameters"]
    assert fresh.runs[numbers].equals(first.runs[numbers])
    assert tlora.Comparison.read("other.jsonl").runs.equals(fresh.runs)
    validation, test = fresh.runs.iloc[0], fresh.runs.iloc[2]
    assert validation["loss"] != test["loss"]


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_an_interrupted_comparison_goes_on_where_it_was(counted, monkeypatch):
    arguments = {"learning_rates": GRID} | QUICK
    whole = tlora.compare(["lora", "lora-fa"], "pairs.jsonl", "llama", store="whole.jsonl", **arguments)
    del counted[:]
    real = bench.train

    def interrupted(*args, **kwargs):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(bench, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tlora.compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **arguments)
    assert len(Store("comparison.jsonl").read()) == 2
    with open("comparison.jsonl", "a") as file:  # and what a kill would leave
        file.write('{"key": {"model"')
    monkeypatch.setattr(bench, "train", real)
    with pytest.warns(UserWarning, match="torn"):
        found = tlora.compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **arguments)
    assert len(counted) == 3 + 6
    assert found.runs["value"].equals(whole.runs["value"])
    assert found.runs["loss"].equals(whole.runs["loss"])


@pytest.mark.usefixtures("workplace")
def test_training_that_is_interrupted_is_no_run(monkeypatch):
    """`tlora.train` gives back what it has when it is interrupted: that is half a run."""
    from tlora.loop import AdapterTrainer

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapterTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tlora.compare("lora", "pairs.jsonl", "llama", **QUICK)
    assert not Path("comparison.jsonl").exists()


@pytest.mark.usefixtures("workplace")
def test_all_methods_see_the_same_samples_in_the_same_order(monkeypatch):
    from tlora.task import Task

    seen: list[str] = []
    real = Task.collate

    def collate(self, examples, padding_side="right"):
        batch = real(self, examples, padding_side)
        if torch.is_grad_enabled() and sys._getframe(1).f_code.co_name == "fetch":
            seen.append(str(batch["input_ids"].tolist()))
        return batch

    monkeypatch.setattr(Task, "collate", collate)
    terms = bench.Terms("llama", steps=12, batch_size=4, samples=8)  # into a second epoch
    task = bench.load_data(terms, "pairs.jsonl", {})

    def order(name, rate, seed):
        del seen[:]
        bench.run(bench.Cell(terms, "pairs.jsonl", {}, METHODS[name], 2), task, rate, seed, "validation", Memory())
        return list(seen)

    first = order("lora", 1e-3, 0)
    assert len(first) >= 12
    for name in ("lora", "pissa", "lora-fa", "adalora", "vera", "tlora"):
        assert order(name, 1e-2, 0) == first, name
    assert order("lora", 1e-3, 1) != first


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_failures_and_divergences_are_rows(monkeypatch, caplog):
    def adapt(job):
        if job.seed == 1:
            raise RuntimeError("no memory")
        return METHODS["lora"].adapt(job)

    def optimizer(rank, model, rate):
        if rate > 5e-3:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(lambda gradient: gradient * math.nan)
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)

    method = Method("mine", adapt, {}, optimizer)
    with caplog.at_level(logging.WARNING):
        found = tlora.compare(method, "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    frame = found.to_frame()
    assert frame["status"].tolist() == ["done", "diverged", "done", "failed"]
    assert frame["best_rate"].tolist() == [False, False, True, True]
    assert math.isnan(frame["value"].iloc[3])
    assert set(frame["metric"]) == {"exact_match"}
    assert "no memory" in caplog.text
    row = found.summary().iloc[0]
    assert (row["seeds"], row["diverged"], row["failed"]) == (1, 1, 1)
    store = Store("comparison.jsonl")
    assert store.read()[3]["error"] == "RuntimeError: no memory"
    healed = Method("mine", METHODS["lora"].adapt, {}, optimizer)
    kept = tlora.compare(healed, "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert kept.runs["status"].tolist()[3] == "failed"
    retried = tlora.compare(healed, "pairs.jsonl", "llama", learning_rates=GRID, retry=True, **QUICK)
    assert retried.runs["status"].tolist() == ["done", "diverged", "done", "done"]
    assert len(store.path.read_text().splitlines()) == 5


@pytest.mark.usefixtures("workplace")
def test_a_method_that_cannot_be_trained_at_all_is_warned_of(monkeypatch, narrow):
    def adapt(job):
        raise RuntimeError("no memory")

    with pytest.warns(UserWarning, match=r"mine at rank 2 on pairs.jsonl: no learning rate from 0.001 to 0.01"):
        found = tlora.compare(Method("mine", adapt), "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert found.runs["status"].tolist() == ["failed", "failed"]


@pytest.mark.usefixtures("narrow", "workplace", "pretended")
def test_a_search_that_was_given_up_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"lora at rank 2 on pairs.jsonl: the best learning rate, 0.01, is at the edge"
    ):
        tlora.compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_everything_that_matters_makes_another_run(pretended):
    counted = pretended
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,)}
    tlora.compare("lora", "pairs.jsonl", "llama", **base)
    assert len(counted) == 3
    changes = [
        {"steps": 4}, {"batch_size": 2}, {"ranks": 3}, {"samples": 6}, {"dtype": "bfloat16"},
        {"learning_rates": (2e-3, 1e-2)}, {"seeds": (5,)},
    ]  # fmt: skip
    for change in changes:
        before = len(counted)
        tlora.compare("lora", "pairs.jsonl", "llama", **base | change)
        assert len(counted) > before, change
    for tasks in ({"pairs.jsonl": {"train": 20}}, {"pairs.jsonl": {"seed": 1}}):
        before = len(counted)
        tlora.compare("lora", tasks, "llama", **base)
        assert len(counted) == before + 3
    for knob in (0.5, 0.0):
        before = len(counted)
        tlora.compare(Recipe("mine", allocate={"temperature": knob}), "pairs.jsonl", "llama", **base)
        assert len(counted) == before + 3


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_a_path_whose_contents_changed_is_run_again(pretended):
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,)}
    rows = Path("pairs.jsonl").read_text()
    file, folder = Path("changing.jsonl"), Path("base")
    file.write_text(rows)
    shutil.copytree("llama", folder)

    def runs() -> int:
        before = len(pretended)
        found = tlora.compare("lora", file.name, folder.name, **base)
        assert len(found.runs) == 3  # none of the earlier contents
        return len(pretended) - before

    assert (runs(), runs()) == (3, 0)
    file.write_text(rows.replace("w4", "w5"))
    assert (runs(), runs()) == (3, 0)
    file.write_text(rows)
    (folder / "README.md").write_text("no part of the model")
    assert runs() == 0
    tiny_model("llama", seed=7).save_pretrained(folder)
    assert (runs(), runs()) == (3, 0)


def test_files_in_place_of_a_hubs_are_told_apart(tmp_path):
    assert bench.model_contents("minilm") | bench.task_contents("rotten_tomatoes", {}) == {}
    files = [tmp_path / split / "data.csv" for split in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("text,label")
    one, other = map(str, files)
    for data_files in (str(tmp_path), one, {"train": one, "test": other}, {"train": [one, other]}):
        before = bench.task_contents("sst2", {"data_files": data_files})
        assert before.keys() == {"task"}
        files[0].write_text(f"text,label,{data_files}")
        assert bench.task_contents("sst2", {"data_files": data_files}) != before


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_a_store_in_the_folder_of_the_data_is_no_part_of_it(pretended):
    Path("own").mkdir()
    shutil.copy("pairs.jsonl", "own/train.jsonl")
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,), "store": "own/runs.jsonl"}
    for _ in range(2):
        tlora.compare("lora", "own", "llama", **base)
    assert len(pretended) == 3


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_more_seeds_are_run_at_the_rate_of_the_first_search(monkeypatch):
    def run(cell, task, rate, seed, split, memory):
        worth = bump({0: 2e-3, 5: 4e-3}[seed])(rate)
        return record("lora", rate, seed, split, [worth, worth]) | {"key": cell.key(rate, seed, split)}

    monkeypatch.setattr(comparing, "run", run)
    for seeds in ((0,), (5,)):
        base = {"learning_rates": (1e-3, 2e-3, 4e-3, 8e-3)} | QUICK | {"seeds": seeds}
        tlora.compare("lora", "pairs.jsonl", "llama", **base)
    found = tlora.Comparison.read("comparison.jsonl")
    tested = found.runs[found.runs["best_rate"]]
    assert tested[["learning_rate", "seed"]].values.tolist() == [[2e-3, 0], [2e-3, 5]]
    assert found.summary(resamples=5).loc[0, "seeds"] == 2


def test_a_second_search_does_not_hide_the_first():
    values = {0: (0.3, 0.8, 0.7, 0.1), 5: (0.1, 0.2, 0.7, 0.8)}
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    records = [
        record("lora", r, seed, "validation", [v]) for seed in values for r, v in zip(grid, values[seed], strict=True)
    ]
    records += [record("lora", 2e-3, 0, "test", [0.6])]
    row = tlora.Comparison.of(records).summary(resamples=5).loc[0]
    assert (row["learning_rate"], row["value"]) == (2e-3, pytest.approx(0.6, abs=1e-3))


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
@pytest.mark.slow
def test_several_processes_share_a_store():
    base = {"learning_rates": GRID} | QUICK
    alone = tlora.compare(["lora", "tlora", "pissa"], "pairs.jsonl", "llama", store="alone.jsonl", **base)
    together = tlora.compare(["lora", "tlora", "pissa"], "pairs.jsonl", "llama", workers=2, **base)
    columns = ["method", "split", "learning_rate", "seed"]
    searched = [
        c.runs[(c.runs["split"] == "validation") & c.runs["learning_rate"].isin(GRID)] for c in (alone, together)
    ]
    one, other = (runs.sort_values(columns).reset_index(drop=True)[[*columns, "loss"]] for runs in searched)
    assert len(one) == 6
    assert one.equals(other)
    assert together.runs["best_rate"].sum() == 6


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"methods": "loar"}, ValueError, "unknown method 'loar'"),
        ({"methods": []}, ValueError, "at least one method"),
        ({"methods": ["lora", "lora"]}, ValueError, "'lora' is named twice"),
        ({"tasks": []}, ValueError, "at least one task"),
        ({"tasks": {"pairs.jsonl": {"train": {1}}}}, TypeError, "load_task"),
        ({"tasks": "pears.jsonl"}, FileNotFoundError, "pears"),
        ({"tasks": {"pairs.jsonl": {"test": 0}}}, ValueError, "test of 'pairs.jsonl' has 0 samples"),
        ({"samples": 400}, ValueError, "train of 'pairs.jsonl' has .* needs 400"),
        ({"ranks": 0}, ValueError, "rank=0"),
        ({"ranks": [4, -1]}, ValueError, "rank=-1"),
        ({"seeds": ()}, ValueError, "seeds="),
        ({"seeds": (0.5,)}, ValueError, "seeds="),
        ({"learning_rates": (1e-3,)}, ValueError, "at least two"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"workers": 0}, ValueError, "workers=0"),
        ({"model": "nowhere/at/all"}, ValueError, "no model 'nowhere/at/all'"),
        ({"model": "bert"}, ValueError, "bert is an encoder and writes no text, which pairs.jsonl asks for"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(arguments, kind, words):
    with pytest.raises(kind, match=words):
        tlora.compare(**{"methods": "lora", "tasks": "pairs.jsonl", "model": "llama"} | QUICK | arguments)
    assert not os.path.exists("comparison.jsonl")


def test_listed_columns_are_those_of_the_table():
    assert LISTED == (
        "method", "task", "model", "rank", "learning_rate", "seed", "metric", "value", "trainable_parameters",
        "best_rate",
    )  # fmt: skip
    assert set(LISTED) <= set(tlora.Comparison.columns)


def test_peak_memory_sees_what_was_held_in_between():
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as during:
        held = mmap.mmap(-1, 200_000_000)  # the allocator may have as much at hand from earlier tests
        np.frombuffer(held, np.uint8)[:] = 1
        held.close()
    with PeakMemory(torch.device("cpu")) as after:
        pass
    if before.bytes is None:
        pytest.skip("the system does not tell")
    assert during.bytes - before.bytes > 150_000_000
    assert after.bytes < during.bytes - 150_000_000


def test_repr_says_what_was_compared():
    assert repr(comparison()) == "Comparison(2 methods (lora, tlora) on 1 tasks, 12 runs, 1 failed)"
    assert isinstance(comparison().to_frame(), pd.DataFrame)
