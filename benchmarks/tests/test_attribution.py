"""The page of attributions is that of what is stored."""

import json

import pytest

from benchmarks.quality import attribution


def test_the_page_is_that_of_what_was_measured() -> None:
    text = attribution.PAGE.read_text()
    assert attribution.render(text) == text, "run python -m benchmarks.quality.attribution --table"


def test_cells_are_what_the_store_says(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    names = ["q", "k", "v"]
    modules = {
        "module": names, "layer": [0, 0, 1], "projection": names, "score": [1.0, 2.0, 3.0], "rank": [1, 2, 3],
        "used_rank": [3, 2, 1], "update_norm": [1.0, 3.0, 2.0],
    }  # fmt: skip
    values = {
        "gap": 0.001,
        "modules": modules,
        "contributions": [[1.0, 2.0, 4.0]] * 3,
        "rises": [7.0] * 3,
        "costs": {name: [0.5] * 3 for name in names},
        "changes": {"same": 2, "beyond": 1},
        "losses": {
            "whole": {"1.0": [1.0, 1.0]},
            "outputs": {"0.25": [2.0, 3.0], "0.5": [2.0, 3.0]},
            "weighted": {"0.25": [1.5, 2.5], "0.5": [1.5, 2.5]},
        },
    }
    store = tmp_path / "store.jsonl"
    store.write_text(json.dumps({"key": {"task": "a", "ranks": "by score"}, "values": values}) + "\n")
    monkeypatch.setattr(attribution, "STORE", store)
    (row,) = attribution.correlations().splitlines()[2:]
    assert row.split(" | ")[2:6] == ["3", "7 (7 to 7)", "0.1%", "2 / 0 / 1"]
    assert [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")[6:]] == [1.0, 1.0, -1.0, 0.5]
    first = attribution.largest_modules().splitlines()[2]
    assert "layer 1 v | 4 (4 to 4) | 0.5 (0.5 to 0.5) | 1 of 3 | 3 | 1" in first
    assert "| v | 4 (4 to 4) | 57% (57% to 57%) | 50% | 50% | 0.5 (0.5 to 0.5) |" in attribution.by_projection()
    assert "| 25% | 1.000 | 2.500 | 2.000 | -0.500 (-0.500 to -0.500) |" in attribution.compression()
