"""The store of runs, and what a comparison reads from it."""

import contextlib
import errno
import json
import math
import subprocess
import sys
from io import FileIO
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.lab import store as store_module
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import Store, key_text, pack, unpack
from benchmarks.tests.helpers import record

ROOT = Path(__file__).parents[2]
NO_WARNING = pytest.mark.filterwarnings("error")


@pytest.fixture
def store(tmp_path) -> Store:
    """Three runs, with the seeds 0, 1 and 2."""
    store = Store(tmp_path / "new" / "runs.jsonl")
    for seed in range(3):
        store.append(record("lora", 1e-3, seed, "validation", [seed]))
    return store


def seeds(store: Store) -> list[int]:
    return [run["key"]["seed"] for run in store.read()]


def test_store_is_plain_lines_and_the_last_run_of_a_key_counts(store):
    lines = store.path.read_text().splitlines()
    assert [json.loads(line)["key"]["seed"] for line in lines] == [0, 1, 2]
    again = record("lora", 1e-3, 1, "validation", [9])
    store.append(again)
    assert store.path.read_text().splitlines()[:3] == lines
    assert [run["metrics"]["accuracy"] for run in store.read()] == [0, 9, 2]
    assert store.by_key()[key_text(again["key"])] == again


@pytest.mark.parametrize("length", [1, 40, 5000])
def test_a_torn_last_line_is_skipped_and_removed_by_the_next_append(store, length):
    before = store.path.read_bytes()
    line = json.dumps(record("lora", 1e-3, 7, "test", np.linspace(0, 1, 5000))).encode()
    store.path.write_bytes(before + line[:length])
    with pytest.warns(UserWarning, match="torn"):
        assert len(store.read()) == 3
    store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.read_bytes().startswith(before)
    assert seeds(store) == [0, 1, 2, 7]


@NO_WARNING
def test_a_last_line_without_a_newline_is_a_run(store):
    """Editors and merges remove the newline."""
    before = store.path.read_bytes()
    store.path.write_bytes(before[:-1])
    assert len(store.read()) == 3
    store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.read_bytes().startswith(before)
    assert seeds(store) == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"accuracy": 1.0', '"accuracy": 3.0'), ('"checksum"', '"checksun"'), ('{"at"', "{]"), ('{"at"', '{}\n{"at"')],
)
def test_damage_before_the_last_line_is_refused_with_its_line(store, old, new):
    store.path.write_text(store.path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"runs.jsonl:[12]"):
        store.read()


@pytest.mark.filterwarnings("ignore:.*the last line is torn")
def test_random_damage_is_refused_or_a_run_is_missing(store):
    """No run is read that was not written."""
    written, whole, rng = store.read(), store.path.read_bytes(), Random(0)
    for _ in range(200):
        start = rng.randrange(len(whole))
        end = min(len(whole), start + rng.choice((0, 1, 1, 20, 500)))
        store.path.write_bytes(whole[:start] + rng.randbytes(rng.choice((0, 1, 1, 20))) + whole[end:])
        with contextlib.suppress(ValueError):
            assert all(run in written for run in store.read())


def test_numbers_that_json_cannot_represent_do_not_reach_the_store(store):
    before = store.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        store.append({"key": {}, "loss": math.nan})
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("room", [0, 1, 500])
def test_a_full_disk_leaves_the_earlier_runs(store, monkeypatch, room):
    size = store.path.stat().st_size

    class Full(FileIO):
        def write(self, data):
            if self.tell() >= size + room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:room])

    monkeypatch.setattr(store_module, "FileIO", Full)
    with pytest.raises(OSError, match="No space left"):
        store.append(record("lora", 1e-3, 7, "validation", [7]))
    assert store.path.stat().st_size == size
    assert len(store.read()) == 3


def test_two_processes_append_at_once(tmp_path):
    code = (
        "import sys; from benchmarks.lab.store import Store; s = Store(sys.argv[1])\n"
        "for n in range(30): s.append({'key': [sys.argv[2], n], 'data': 'x' * 20000})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs.jsonl")]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(Store(tmp_path / "runs.jsonl").read()) == 60


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_outcomes_are_restored(count):
    rng = np.random.default_rng(count)
    bits, floats = rng.integers(0, 2, count).astype(float), rng.normal(size=count)
    assert np.array_equal(unpack(json.loads(json.dumps(pack(bits)))), bits)
    assert np.array_equal(unpack(pack(floats)), floats.astype(np.float16).astype(float))
    assert pack(bits)["kind"] == "bits"
    assert len(pack(bits)["data"]) <= count / 6 + 4
    assert np.isfinite(unpack(pack(np.array([1e30, -1e30])))).all()


def test_read_uses_the_newest_settings_of_a_name(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for steps in (3, 9):
        for rate in (1e-3, 1e-2):
            store.append(record("lora", rate, 0, "validation", [steps / 10], steps=steps))
    assert Comparison.read(store.path).runs["value"].tolist() == [0.9, 0.9]


def test_read_compares_only_equal_data_and_training(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    settings = {"lora": {"steps": 3}, "dora": {"data": {"seed": 1}, "steps": 9}, "mine": {"steps": 9}}
    for method, changes in settings.items():
        for split in ("validation", "test"):
            store.append(record(method, 1e-3, 0, split, [0.5, 1], **changes))
    store.append(record("lora", 1e-3, 0, "test", [0.5, 1], task="another"))
    with pytest.warns(UserWarning, match="left out") as warned:
        runs = Comparison.read(store.path).runs
    assert runs[["method", "task"]].drop_duplicates().values.tolist() == [["mine", "pairs"], ["lora", "another"]]
    steps, data = (str(warning.message) for warning in warned)
    assert "lora on pairs" in steps
    assert "steps" in steps
    assert "dora on pairs" in data
    assert "data" in data


@pytest.mark.parametrize("ranks", [4, np.int64(4), [4]])
def test_read_selects(tmp_path, ranks):
    store = Store(tmp_path / "runs.jsonl")
    for method, rank in (("lora", 2), ("lora", 4), ("mine", 4)):
        store.append(record(method, 1e-3, 0, "validation", [1], rank=rank))
    runs = Comparison.read(store.path, methods="lora", ranks=ranks, tasks=["pairs"]).runs
    assert runs[["method", "rank"]].values.tolist() == [["lora", 4]]
    with pytest.raises(ValueError, match="method nosuch"):
        Comparison.read(store.path, methods=["nosuch"])
    with pytest.raises(ValueError, match="rank 2"):
        Comparison.read(store.path, methods=["mine"], ranks=[2])


def test_read_of_nothing_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        Comparison.read(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="none"):
        Comparison.read(tmp_path / "none")
