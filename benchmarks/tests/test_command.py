"""`python -m benchmarks.lab`."""

import io
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.lab import lr_search
from benchmarks.lab.__main__ import LISTED, main
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import Store
from benchmarks.tests.helpers import record

pytestmark = pytest.mark.usefixtures("workplace")
SMALL = "--rank 2 --steps 3 --batch-size 4 --samples 8 --seeds 2 --search-seeds 1 --lr 1e-3 --lr 1e-2"


@pytest.fixture
def store() -> Store:
    """Two methods with three seeds, and one that failed."""
    store = Store("runs.jsonl")
    for method, score in (("lora", 0.4), ("captured", 0.6)):
        for rate in (1e-3, 2e-3, 4e-3):
            store.append(record(method, rate, 0, "validation", [score - abs(rate - 2e-3)]))
        for seed in range(3):
            store.append(record(method, 2e-3, seed, "test", [score, 0, 1, 0.5]))
    store.append(record("vera", 1e-3, 0, "validation", None))
    return store


def test_it_runs_and_resumes(monkeypatch, capsys):
    monkeypatch.setattr(lr_search, "EXTENSIONS", 0)
    line = f"--model llama --task pairs.jsonl --method lora --method captured {SMALL} --store runs.jsonl".split()
    with pytest.warns(UserWarning, match="edge"):
        main(line)
    first, before = capsys.readouterr().out, Path("runs.jsonl").read_bytes()
    assert first.startswith("Comparison(2 methods (lora, captured) on 1 tasks, 8 runs)")
    assert "pairs.jsonl, llama, rank 2: exact_match" in first
    with pytest.warns(UserWarning, match="edge"):
        main(line)
    assert capsys.readouterr().out == first
    assert Path("runs.jsonl").read_bytes() == before


def test_the_list_is_csv(store, capsys):
    main(["--store", "runs.jsonl", "--list"])
    listed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    pd.testing.assert_frame_equal(listed, Comparison.read("runs.jsonl").runs[list(LISTED)], check_dtype=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ("captured", "0.525", "0.05", "vera")),
        ("--loss", ("negative_loss",)),
        ("--baseline captured --baseline-rank 2", ("-0.05",)),
    ],
)
def test_the_summary_names_values_and_differences(store, capsys, options, words):
    main(["--store", "runs.jsonl", *options.split()])
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize("view", ["differences", "rates"])
def test_a_picture(store, view):
    main(["--store", "runs.jsonl", "--view", view, "--picture", "comparison.png"])
    assert Path("comparison.png").read_bytes().startswith(b"\x89PNG")
