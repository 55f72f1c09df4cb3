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


def test_parts_after_the_grid_are_of_the_best_rates(store, monkeypatch):
    monkeypatch.setattr(rates, "TASKS", {TASK: {}})
    monkeypatch.setattr(rates, "TARGETS", {"q, v": ["q_proj", "v_proj"]})
    monkeypatch.setattr(rates, "ARMS", tuple(LOSSES))
    assert [(runs.arm, runs.share) for runs in rates.plan("more")] == [
        ("lora", 1), ("lora-fa", 1), ("lora-fa", 4), ("captured", 1), ("captured", 2),
    ]  # fmt: skip
    assert [(runs.arm, runs.share, runs.seeds) for runs in rates.plan("beyond")] == [("lora", 0.5, rates.GRID_SEEDS)]
    monkeypatch.setattr(rates, "ARMS", (*rates.ARMS, "tlora-paper"))
    with pytest.raises(ValueError, match="tlora-paper"):
        list(rates.plan("more"))


def test_a_rate_beyond_the_grid_is_shown_and_changes_no_test(store):
    before = rates.hypotheses()
    key = {"task": TASK, "method": "lora", "learning_rate": rates.R / 2, "target_modules": ["q_proj", "v_proj"]}
    for seed, loss in enumerate((0.2, 0.4)):
        record = {"status": "done", "metrics": {"loss": loss + 1}, "validation_loss": loss, "base_loss": 3.0}
        store.append({"key": key | {"seed": seed}, **record})
    pd.testing.assert_frame_equal(rates.hypotheses(), before)
    shown = rates.means().set_index(["arm", "share"]).loc["lora"]
    assert shown.loc[0.5, ["validation", "loss"]].tolist() == pytest.approx([0.3, 1.3])
    assert shown.index[shown["best"]].tolist() == [1]
