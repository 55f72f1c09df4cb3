"""The search for a learning rate, the store of runs, and what it keeps of each sample."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import stat
import subprocess
import sys
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

import tlora
from tests.adapted import quick_collections  # noqa: F401
from tests.commands import saved, workplace  # noqa: F401
from tests.helpers import tiny_model
from tests.results import record
from tlora.comparison import lr_search
from tlora.comparison.run import outcomes
from tlora.comparison.store import Store, key_text, packed, unpacked

GRID = (1e-3, 1e-2)
ROOT = Path(__file__).parents[2]

# The search for a learning rate.


def bump(centre: float):
    """A smooth objective of one peak on a log scale."""
    return lambda rate: (-abs(math.log(rate / centre)),)


@pytest.mark.parametrize("centre", [1e-6, 7e-5, 1e-3, 3e-3, 0.3])
@pytest.mark.parametrize("grid", [(1e-3, 2e-3, 4e-3), (4e-3, 1e-3, 2e-3), (1e-3, 1e-2)])
def test_grid_is_widened_until_the_best_rate_is_inside(centre, grid):
    values = lr_search.search(bump(centre), grid)
    found, factor = lr_search.best(values), sorted(grid)[1] / sorted(grid)[0]
    assert values.keys() >= set(grid)
    if centre > 1e-5 or factor > 2:
        assert min(values) < found < max(values)
        assert abs(math.log(found / centre)) <= math.log(factor)
        assert lr_search.beyond(values) is None
    steps = [b / a for a, b in itertools.pairwise(sorted(values))]
    assert steps == pytest.approx([factor] * len(steps), rel=0.01)


def test_a_search_that_never_ends_is_given_up():
    values = lr_search.search(lambda rate: (rate,), GRID)
    assert len(values) == len(GRID) + lr_search.WIDENINGS
    assert lr_search.beyond(values) is not None


def test_a_search_that_goes_on_ends_where_one_does_that_was_never_interrupted():
    whole = lr_search.search(lambda rate: (rate,), GRID)
    for done in range(len(GRID), len(whole) + 1):
        tried = sorted(whole)[:done]
        assert lr_search.search(lambda rate: (rate,), GRID, tried) == whole
    inside = lr_search.search(bump(2e-3), (1e-3, 4e-3), (2e-3, 3e-3))
    assert lr_search.beyond(inside) is None


def test_what_was_tried_before_is_scored_once():
    """A rate that fails each time it is run would be run twice."""
    scored = []
    lr_search.search(lambda rate: scored.append(rate) or bump(2e-3)(rate), (1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 3e-3))
    assert sorted(scored) == [1e-3, 2e-3, 3e-3, 4e-3]


def test_rates_that_diverge_are_no_reason_to_go_higher():
    values = lr_search.search(lambda rate: (rate if rate < 3e-3 else -math.inf,), (1e-3, 2e-3, 4e-3))
    assert lr_search.best(values) == 2e-3
    assert len(values) == 3
    lower = lr_search.search(lambda rate: (-math.inf if rate > 2e-4 else -rate / 1e-4 - 1e-4 / rate,), (1e-3, 2e-3))
    assert lr_search.best(lower) == pytest.approx(1.25e-4)
    assert lr_search.best(dict.fromkeys((1e-3, 2e-3), (math.nan,))) is None


def test_among_equals_the_rest_of_the_score_decides_and_then_the_middle():
    assert lr_search.best({1e-3: (0.5, -0.3), 2e-3: (0.5, -0.2), 4e-3: (0.4, -0.1)}) == 2e-3
    assert lr_search.best(dict.fromkeys((1e-3, 2e-3, 4e-3), (0.5, -0.3))) == 2e-3


def test_where_all_came_to_the_same_the_search_goes_lower():
    """At rates that are too high a classifier guesses, and the best of these is none."""

    def learnt(rate):
        return (0.8 - abs(math.log(rate / 1e-4)) / 10 if rate < 3e-4 else 0.5, -abs(rate - 2e-3))

    scores = lr_search.search(learnt, (1e-3, 2e-3, 4e-3))
    assert lr_search.best(scores) == pytest.approx(1.25e-4, rel=0.01)
    assert lr_search.beyond(scores) is None
    assert len(scores) == 7


@pytest.mark.parametrize("grid", [(), (1e-3,), (1e-3, 1e-3), (0.0, 1e-3), (-1.0, 1.0), (math.inf, 1.0), ("a", "b")])
def test_grids_that_are_none_are_refused(grid):
    with pytest.raises(ValueError, match=r"learning.rate"):
        lr_search.search(bump(1), grid)


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


def test_a_last_line_without_an_end_is_a_run_all_the_same(tmp_path, recwarn):
    """Editors and merges take the end of the last line away."""
    store = filled(tmp_path / "runs.jsonl")
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-1])
    assert len(store.read()) == 3
    store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.read_bytes().startswith(whole)
    assert [r["key"]["seed"] for r in store.read()] == [0, 1, 2, 7]
    assert not recwarn.list


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
        patch.setattr("tlora.comparison.store.FileIO", Full)
        with pytest.raises(OSError, match=r"No space left on device \(the runs before are there.*\): '.*runs.jsonl'"):
            store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.stat().st_size == size
    assert len(store.read()) == 3


def test_a_folder_that_cannot_be_flushed_holds_a_store_all_the_same(tmp_path, monkeypatch):
    plain = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert len(filled(tmp_path / "runs.jsonl").read()) == 3


def test_two_processes_append_at_once(tmp_path):
    code = (
        "import sys; from tlora.store import Store; s = Store(sys.argv[1])\n"
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
