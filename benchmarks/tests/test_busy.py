"""What one waits for beside other processes: a measurement is made once, and the table has the medians."""

import itertools

import pytest

from benchmarks.lab.store import Store
from benchmarks.speed import busy


def test_what_is_stored_is_not_measured_again(tmp_path, monkeypatch):
    seconds = iter([1.0, 5.0, 2.0, 6.0, 9.0, 7.0])
    monkeypatch.setattr(busy, "measure", lambda *_: next(seconds))
    store = Store(tmp_path / "busy.jsonl")

    def fill(repeats: int) -> None:
        busy.fill(store, itertools.product(range(repeats), ["drag"], [0], ["default", "passive"]), tmp_path / "none")

    fill(2)
    fill(2)
    fill(3)
    assert next(seconds, None) is None
    assert busy.table(store.read()).to_numpy().tolist() == [[2.0, 6.0]]


def test_what_takes_long_is_measured_once(tmp_path, monkeypatch):
    seconds = iter([10.0, 1.0, 3.0, 2.0])
    monkeypatch.setattr(busy, "measure", lambda *_: next(seconds))
    store = Store(tmp_path / "busy.jsonl")
    busy.fill(store, itertools.product(range(3), ["explain", "drag"], [0], ["passive"]), tmp_path / "none")
    assert next(seconds, None) is None
    assert busy.table(store.read())["passive"].to_dict() == {("explain", 0): 10.0, ("drag", 0): 2.0}
    lines = busy.section(store).splitlines()
    assert lines[-2:] == ["| `tlora explain` of one request | 0 | 10 |", "| a drag in the workbench | 0 | 2 |"]


def test_the_page_is_that_of_what_was_measured():
    text = busy.PAGE.read_text()
    assert busy.filled(text, Store(busy.STORE)) == text, "run python -m benchmarks.speed.busy --table"


def test_without_a_measurement_the_page_has_no_table(tmp_path):
    assert busy.filled(busy.BEGIN + busy.END, Store(tmp_path / "none")).split() == (busy.BEGIN + " " + busy.END).split()


@pytest.mark.parametrize("setting", busy.SETTINGS)
def test_a_setting_is_all_that_a_process_has(setting, monkeypatch):
    for name in busy.THREADS:
        monkeypatch.setenv(name, "of the user")
    environment = busy.environment_with(busy.SETTINGS[setting])
    assert {name: environment[name] for name in busy.THREADS & environment.keys()} == busy.SETTINGS[setting]
