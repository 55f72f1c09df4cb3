"""The page on rates shows what the store holds, and its parts and tests are those of the definitions."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.lab.store import Store
from benchmarks.quality import rates
from benchmarks.quality.pages import fill_blocks

TASK = "spell_backward"
LOSSES = {"lora": (1.0, 1.1, 1.5, 2.0), "lora-fa": (2.0, 1.4, 1.3, 1.6), "captured": (1.2, 1.05, 1.3, 1.7)}
NOISE = np.array([0.0, 0.02, -0.03, 0.01, 0.04, -0.01])
NOISES = {"lora": 0 * NOISE, "lora-fa": NOISE, "captured": NOISE[::-1] / 2}


def test_the_page_is_of_the_store():
    text = rates.PAGE.read_text()
    assert fill_blocks(text, "rates", rates.TABLES) == text, "run python -m benchmarks.quality.rates --table"
    assert b"Description\0" + rates.digest().encode() in rates.PICTURE.read_bytes()  # PNG's tEXt chunk


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six seeds of three arms at four rates, queries and values; the base's loss is 3."""
    store = Store(tmp_path / "runs.jsonl")
    monkeypatch.setattr(rates, "STORE", tmp_path / "runs.jsonl")
    for (arm, losses), (n, share), seed in product(LOSSES.items(), enumerate(rates.SHARES), rates.SEEDS):
        loss = losses[n] + NOISES[arm][seed]
        key = {"task": TASK, "method": arm, "learning_rate": share * rates.R, "seed": seed}
        record = {"status": "done", "metrics": {"loss": loss}, "validation_loss": loss, "base_loss": 3.0}
        store.append({"key": key | {"target_modules": ["q_proj", "v_proj"]}, **record})
    return store


def test_the_parts_add_up_to_the_gap(store):
    parts = rates.gaps(rates.test_runs(), TASK, "q, v")
    np.testing.assert_allclose(parts["gap at R"], 1.0 + NOISE)
    np.testing.assert_allclose(parts["rate"], 0.7)  # 1.0 at R, and 1.3 against 1.0 at their best
    np.testing.assert_allclose(parts["directions"], 0.25 + NOISE - NOISE[::-1] / 2)
    np.testing.assert_allclose(parts["remains"], 0.05 + NOISE[::-1] / 2)
    pd.testing.assert_series_equal(
        parts["rate"] + parts["directions"] + parts["remains"], parts["gap at R"], check_names=False
    )


def test_hypotheses_are_paired_t_tests(store):
    table = rates.hypotheses().set_index(["hypothesis", "task", "targets"])
    rate = stats.ttest_1samp((1.0 + NOISE) / 2 - 0.7, 0, alternative="less").pvalue
    assert table.loc[("H1", TASK, "q, v"), "p"] == pytest.approx(rate)
    directions = stats.ttest_1samp(1.2 + NOISE[::-1] / 2 - 2.0 - NOISE, 0, alternative="less").pvalue
    assert table.loc[("H2", TASK, "q, v"), "holm"] == pytest.approx(4 * directions)
    np.testing.assert_allclose(table.loc[("H3", TASK, "q, v"), "value"], 0.2 + NOISE[::-1] / 2 - 0.05 * 2.0)
    assert table.loc[("H1", TASK, "all"), "p"] == 1  # was not run


def test_the_second_part_is_at_r_and_at_the_best_rate(store, monkeypatch):
    monkeypatch.setattr(rates, "TASKS", {TASK: {}})
    monkeypatch.setattr(rates, "TARGETS", {"q, v": ["q_proj", "v_proj"]})
    monkeypatch.setattr(rates, "ARMS", tuple(LOSSES))
    assert [(runs.arm, runs.share) for runs in rates.plan("more")] == [
        ("lora", 1), ("lora-fa", 1), ("lora-fa", 4), ("captured", 1), ("captured", 2),
    ]  # fmt: skip
    monkeypatch.setattr(rates, "ARMS", (*rates.ARMS, "tlora-paper"))
    with pytest.raises(ValueError, match="tlora-paper"):
        list(rates.plan("more"))
