"""The page of frozen directions is that of what is stored, and its tests are those of the hypotheses."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.quality import directions
from benchmarks.quality.pages import fill_blocks


def test_the_page_and_its_picture_are_those_of_what_was_measured() -> None:
    text = directions.PAGE.read_text()
    assert fill_blocks(text, "directions", directions.BLOCKS) == text, (
        "run python -m benchmarks.quality.directions --table"
    )
    said = b"Description\0" + directions.digest().encode()  # PNG's tEXt chunk
    assert said in directions.PICTURE.read_bytes()


def runs(task: str, arm: str, share: float, losses: Any) -> pd.DataFrame:
    """Runs of an arm, six seeds; the base's loss is 3."""
    rows = [{"task": task, "arm": arm, "share": share, "seed": s, "loss": x, "base": 3.0} for s, x in enumerate(losses)]
    return pd.DataFrame(rows).assign(validation=lambda table: table["loss"], reviews=0.1, humaneval=0.3)


def test_not_behind_allows_a_part_of_what_lora_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    task = "spell_backward"
    lora, fisher = np.linspace(0.9, 1.1, 6), np.linspace(0.95, 1.05, 6)
    table = pd.concat([runs(task, directions.LORA, 1.0, lora), runs(task, directions.FISHER, 1.0, fisher + 0.02)])
    monkeypatch.setattr(directions, "test_runs", lambda: table)
    row = directions.Claim("H1", task, directions.FISHER, directions.LORA, has_margin=True).test()
    assert row["margin"] == pytest.approx(0.05 * 2)
    assert row["mean"] == pytest.approx(0.02)
    assert row["p"] == pytest.approx(stats.ttest_rel(fisher + 0.02 - 0.1, lora, alternative="less").pvalue)
    assert directions.Claim("H1b", task, directions.FISHER, "random").test()["p"] == 1
