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


@pytest.mark.parametrize("setting", busy.SETTINGS)
def test_a_setting_is_all_that_a_process_has(setting, monkeypatch):
    for name in busy.THREADS:
        monkeypatch.setenv(name, "of the user")
    environment = busy.environment_with(busy.SETTINGS[setting])
    assert {name: environment[name] for name in busy.THREADS & environment.keys()} == busy.SETTINGS[setting]
