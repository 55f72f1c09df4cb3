"""The page of experts is that of what is stored, and its shares are those of the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.lab.store import Store
from benchmarks.quality import experts
from benchmarks.quality.pages import fill_blocks


def test_the_page_is_that_of_what_was_measured() -> None:
    text = experts.PAGE.read_text()
    assert fill_blocks(text, "experts", experts.TABLES) == text, "run python -m benchmarks.quality.experts --table"


def test_shares_are_of_all_experts_together_and_differences_are_paired(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experts, "STORE", tmp_path / "store.jsonl")
    store, own = Store(experts.STORE), [0.5, 0.6, 0.9]
    for mixture, share in enumerate(own):
        captured = {kind: 4.0 for kind in (*experts.DIRECTIONS, "best")} | {"own": 10 * share}
        value = {"parameter": "down_proj", "rank": 8, "total": 10.0, "captured": captured}
        silent = value | {"total": 0.0, "captured": dict.fromkeys(captured, 0.0), "rows": "to 16"}
        key = {"part": "capture", "mixture": mixture, "draw": 0, "task": "commands", "samples": 64}
        store.append({"key": key, "values": [value | {"rows": "more"}, silent]})
    line = next(line for line in experts.prior_table().splitlines() if line.startswith("| own"))
    low, high = stats.t.interval(0.95, 2, np.mean(own) * 100 - 40, stats.sem(np.array(own) * 100))
    assert line.endswith(f"| {100 * np.mean(own) - 40:.2f} ({low:.2f} to {high:.2f}) |")
