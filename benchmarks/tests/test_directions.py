"""The page of frozen directions is that of what is stored, and its tests are those of the hypotheses."""

import re
from pathlib import Path
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


def test_the_recipe_is_the_arm_that_falls_least_behind_of_what_lora_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = np.linspace(0.9, 1.1, 6)
    behind = {directions.FISHER: (0.1, 0.2, 0.3, 0.4), directions.CAPTURED: (-0.2, 0.0, 0.0, 0.2)}
    table = [runs(task, directions.LORA, 1.0, lora) for task in directions.TASKS]
    for arm, gaps in behind.items():
        table += [runs(task, arm, 1.0, lora + gap) for task, gap in zip(directions.TASKS, gaps, strict=True)]
    table[-1]["loss"] += np.arange(6) / 10  # on one task of four: 2 nats are learned there
    monkeypatch.setattr(directions, "test_runs", lambda: pd.concat(table))
    found = directions.decision()
    assert list(found.index[:2]) == [directions.CAPTURED, directions.FISHER]
    first, second = found.loc[directions.CAPTURED], found.loc[directions.FISHER]
    by_seed = np.arange(6) / 10 / 2 / 4
    assert [first["mean"], first["behind"], first["error"]] == pytest.approx([by_seed.mean(), 0, 0])
    expected = [0.125, 0.125 - by_seed.mean(), stats.sem(by_seed)]
    assert second[["mean", "behind", "error"]].tolist() == pytest.approx(expected)
    assert found.loc["wc"].isna().all()  # was not run


def test_the_table_of_the_readme_has_the_losses_of_the_stores() -> None:
    rows = re.findall(r"^\| .+ \| ([\d.*]+) \| ([\d.*]+) \| ([\d.*]+) \|$", Path("README.md").read_text(), re.MULTILINE)
    shown = [[float(cell.strip("*")) for cell in row] for row in rows]
    runs = directions.test_runs()
    expected = []
    for task in directions.TASKS:
        each = runs[runs["task"] == task]
        lora, captured = (each[each["arm"] == arm] for arm in (directions.LORA, directions.CAPTURED))
        seeds = lora.groupby("seed")["share"].nunique()
        complete = lora[lora["seed"].isin(seeds[seeds == seeds.max()].index)]  # ran at all rates
        own = complete.groupby("share")["validation"].mean().idxmin()
        at = [lora[lora["share"] == 1], lora[lora["share"] == own], captured[captured["share"] == 1]]
        expected.append([round(arm["loss"].mean(), 2) for arm in at])
    assert shown == expected
