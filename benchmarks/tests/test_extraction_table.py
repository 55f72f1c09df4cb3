"""The tables of extracted adapters show means and paired differences of what a store holds."""

import numpy as np
import pytest

from benchmarks.lab.store import Store
from benchmarks.quality import extraction
from benchmarks.quality.pages import fill_blocks


def test_the_page_is_of_the_store():
    text = extraction.PAGE.read_text()
    assert fill_blocks(text, "extraction", extraction.TABLES) == text, (
        "run python -m benchmarks.quality.extraction --table"
    )


@pytest.fixture
def store(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs.jsonl")
    monkeypatch.setattr(extraction, "STORE", store)
    variants = [{"what": "base"}, {"what": "fine-tune"}]
    variants += [{"what": "extracted", "rank": 4, "cut": cut} for cut in extraction.CUTS]
    for number, variant in enumerate(variants):
        losses = {name: (np.arange(5.0) + number).tolist() for name in ("task", *extraction.OTHERS)}
        about = {"held": {"plain": 0.25, "task": 0.5}, "left_out": 0.125} if variant["what"] == "extracted" else {}
        key = extraction.cell_key("smollm2-135m", "smart_home", variant)
        store.append({"key": key, "losses": losses, **about})
    return store


def test_losses_are_compared_with_the_fine_tune_and_the_plain_cut(store):
    *_, plain, task = extraction.task_table().splitlines()
    assert plain.split(" | ")[2:] == ["4", "plain", "4.000", "+1.000 (+1.000 to +1.000)", " |"]
    assert task.split(" | ")[2:] == ["4", "task", "5.000", "+2.000 (+2.000 to +2.000)", "+1.000 (+1.000 to +1.000) |"]


def test_other_text_is_compared_with_the_base(store):
    assert extraction.text_table().splitlines()[-1].count("+3.000 (+3.000 to +3.000)") == 2


def test_what_is_held_is_a_row_per_rank(store):
    (row,) = extraction.held_table().splitlines()[2:]
    assert row == "| smollm2-135m | smart_home | 4 | 25.0% | 25.0% | 50.0% | 12.5% |"


def test_cells_that_are_missing_are_counted_by_fine_tune(store):
    assert extraction.missing_cells() == (
        "38 of 42 cells are missing (smart_home on smollm2-135m: 6; spell_backward on smollm2-135m: 10; "
        "rotten_tomatoes on minilm: 11; states on minilm: 11)."
    )
