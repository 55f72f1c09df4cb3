"""A comparison that is killed at random moments goes on where it was, and makes no run twice."""

import os
import warnings
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest

from benchmarks.lab import lr_search
from benchmarks.lab.compare import compare
from benchmarks.lab.store import Store, key_text
from tests.helpers.kills import FORKS, killed, side_by_side, whole

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")]

FORKS.set_forkserver_preload([__name__])


def compare_two(folder: Path) -> None:
    warnings.simplefilter("ignore")  # that the best rate is at the edge, and that a last line is torn
    with patch.object(lr_search, "EXTENSIONS", 0):
        compare(
            ["lora", "lora-fa"], str(folder.parent / "pairs.jsonl"), str(folder.parent / "llama"),
            learning_rates=(1e-3, 2e-3), seeds=(0, 1), steps=2, batch_size=2, samples=2, progress=False,
            store=folder / "runs.jsonl",
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*the last line is torn:UserWarning")
@pytest.mark.usefixtures("workplace")
def test_a_comparison_goes_on_and_does_nothing_twice() -> None:
    place = Path.cwd()
    longest = whole(compare_two, place / "whole")
    expected = {key_text(r["key"]): r["metrics"] for r in Store(place / "whole" / "runs.jsonl").read()}

    def twice(number: int, rng: Random) -> None:
        for _ in range(2):
            killed(compare_two, place / f"{number}", rng.uniform(0, longest))

    side_by_side([partial(twice, n, Random(f"compare {n}")) for n in range(9)])
    for number in range(9):
        store = Store(place / f"{number}" / "runs.jsonl")
        before = list(store.by_key().values())
        lines = store.path.read_bytes().split(b"\n")[:-1] if store.path.exists() else []
        compare_two(store.path.parent)
        after = store.read()
        assert after[: len(before)] == before
        assert store.path.read_bytes().split(b"\n")[: len(lines)] == lines
        assert {key_text(r["key"]): r["metrics"] for r in after} == expected
        assert len(store.path.read_bytes().split(b"\n")) - 1 == len(after)
