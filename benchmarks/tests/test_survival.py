"""The page about quantization shows what the store holds, and its rule counts what a table by hand does."""

from pathlib import Path

import pytest

from benchmarks.lab.store import Store
from benchmarks.quality import survival
from benchmarks.quality.pages import fill_blocks

KEPT = "All of the update survives; what you lose is what NF4 costs the base: +0.01 nats on 32 rows"
LOST = "3% of the update survives: this base is on the NF4 grid already. Keep the adapter beside it"
TWICE = "The base's weights are rounded a second time, and that, not the update, is what is lost: +0.1 nats on 32 rows"


def test_the_page_is_of_the_store():
    text = survival.PAGE.read_text()
    assert fill_blocks(text, "survival", survival.TABLES) == text, "run python -m benchmarks.quality.survival --table"


def row(share: float, beside: float, merged: float, finding: str) -> dict[str, object]:
    """One format of one run; the loss of the quantized base is 1."""
    losses = {"quantized_loss": 1.0, "beside_loss": 1 - beside, "merged_loss": 1 - merged}
    return {"format": "nf4", "share": share, "low": share - 0.1, "high": share + 0.1, "finding": finding, **losses}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Four seeds of one adapter: warned and lost, missed, warned and kept, and lost of too small a gain."""
    store = Store(tmp_path / "runs.jsonl")
    monkeypatch.setattr(survival, "STORE", store)
    rows = [row(0.03, 0.4, 0.0, LOST), row(1.0, 0.4, 0.1, KEPT), row(0.4, 0.4, 0.3, LOST), row(1.57, 0.01, 0.0, TWICE)]
    for seed, one in enumerate(rows):
        key = survival.run_keys("minilm", "LoRA, r = 8", seed)["NF4"]
        store.append({"key": key, "rows": [one]})
    return store


def test_shares_are_means_with_the_ends_of_their_intervals(store):
    (line,) = survival.share_table().splitlines()[2:]
    assert line == "| minilm | LoRA, r = 8 | 300 | NF4 | 4 | 0.750 (-0.070 to 1.670) |"


def test_orders_are_mean_gains_and_every_sentence(store):
    (line,) = survival.order_table().splitlines()[2:]
    assert line.endswith("| NF4 | 0.750 | 1.000 | +0.303 | +0.100 | lost, kept, rounded twice |")


def test_the_rule_is_judged_where_the_gain_is_clear(store):
    whole, base = survival.rule_table().splitlines()[2:]
    assert whole == "| all | 4 | 2 | 3 | 2 | 1 | 1 | 1 |"
    assert base == whole.replace("all", "base NF4")


def test_runs_that_are_missing_are_counted(store):
    assert survival.missing_runs().endswith("51 of them are missing.")  # three of the four seeds are planned
