"""The search for a learning rate, the store of runs, and what it keeps of each sample."""

import errno
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

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import Store, key_text, pack, unpack
from benchmarks.tests.helpers import record
from tests.helpers import results
from tests.helpers.results import same

ROOT = Path(__file__).parents[3]


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
    assert store.by_key()[key_text(again["key"])] == again


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
        with pytest.raises(ValueError, match=r"runs.jsonl:1 is not a run"):
            store.read()
    with pytest.raises(FileNotFoundError, match=r"no runs in .*store="):
        Store(tmp_path / "none").read()
    assert Store(tmp_path / "none").by_key() == {}


def test_numbers_that_json_has_no_word_for_do_not_reach_the_store(tmp_path):
    store = filled(tmp_path / "runs.jsonl")
    before = store.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append({"key": {}, "loss": math.nan})
    assert store.path.read_bytes() == before


def test_each_line_is_checked(tmp_path):
    store = filled(tmp_path / "runs.jsonl")
    text = store.path.read_text()
    for old, new in (
        ('"accuracy": 1.0', '"accuracy": 3.0'),
        ('"checksum"', '"checksun"'),
        ('"checksum": "', '"checksum": "0'),
    ):
        store.path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=r"runs.jsonl:[12] is not a run .*checksum.*take the line out"):
            store.read()


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
        patch.setattr("benchmarks.lab.store.FileIO", Full)
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
        "import sys; from benchmarks.lab.store import Store; s = Store(sys.argv[1])\n"
        "for n in range(30): s.append({'key': [sys.argv[2], n], 'data': 'x' * 20000})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs.jsonl")]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(Store(tmp_path / "runs.jsonl").read()) == 60


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_outcomes_come_back(count):
    rng = np.random.default_rng(count)
    bits, floats = rng.integers(0, 2, count).astype(float), rng.normal(size=count)
    assert np.array_equal(unpack(json.loads(json.dumps(pack(bits)))), bits)
    assert np.array_equal(unpack(pack(floats)), floats.astype(np.float16).astype(float))
    assert pack(bits)["kind"] == "bits"
    assert len(pack(bits)["data"]) <= count / 6 + 4
    assert np.isfinite(unpack(pack(np.array([1e30, -1e30])))).all()
    with pytest.raises(ValueError, match="changed by hand"):
        unpack(pack(floats) | {"count": count + 8})


GRID = (1e-3, 1e-2)


def test_read_takes_what_was_begun_last_under_a_name(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for steps in (3, 9):
        for rate in GRID:
            store.append(record("lora", rate, 0, "validation", [steps / 10], steps=steps))
    found = Comparison.read(store.path)
    assert found.runs["value"].tolist() == [0.9, 0.9]
    assert found.meta.recipe["steps"] == 9
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="holds no runs"):
        Comparison.read(tmp_path / "empty")


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
        found = Comparison.read(store.path)
    assert found.runs[["method", "task"]].drop_duplicates().values.tolist() == [["mine", "pairs"], ["lora", "another"]]
    assert [str(w.message).partition(";")[0] for w in told] == [
        "runs of lora on pairs are left out, because they cannot be compared: steps is 3 there and 9 where they were "
        "begun last",
        "runs of dora on pairs are left out, because they cannot be compared: data is {'seed': 1} there and {'seed': "
        "0} where they were begun last",
    ]


def test_read_gives_what_was_asked_for(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    for method, rank in (("lora", 2), ("lora", 4), ("mine", 4)):
        store.append(record(method, 1e-3, 0, "validation", [1], rank=rank))
    found = Comparison.read(store.path, methods=["lora"], ranks=[4], tasks=["pairs"])
    assert found.runs[["method", "rank"]].values.tolist() == [["lora", 4]]
    assert same(Comparison.read(store.path, methods="lora", ranks=np.int64(4), tasks="pairs"), found)
    for wrong, words in (
        ({"methods": ["nosuch"]}, "no runs of method nosuch .* only of lora, mine"),
        ({"methods": ["mine"], "ranks": [2]}, "no runs of rank 2 among those asked for, only of 4"),
        ({"tasks": ["gsm8k"]}, "no runs of task gsm8k .* only of pairs"),
    ):
        with pytest.raises(ValueError, match=words):
            Comparison.read(store.path, **wrong)


IN_PLACE = pytest.mark.filterwarnings("ignore:The inplace keyword")  # which pandas goes on having for a while


@IN_PLACE
@pytest.mark.parametrize("change", ["sorted", "without failures"])
def test_a_comparison_that_was_changed_in_place_is_saved_as_it_is(change: str, tmp_path: Path) -> None:
    found = results.comparison()
    if change == "sorted":
        found.runs.sort_values("value", ascending=False, inplace=True)
    else:
        found.runs.drop(found.runs[found.runs["status"] == "failed"].index, inplace=True)
    kept = found.summary().set_index("method")
    found.save(tmp_path)
    again = Comparison.load(tmp_path).summary().set_index("method")
    assert again.loc[kept.index].equals(kept)
