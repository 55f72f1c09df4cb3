"""Records of runs as a store holds them, and adapters of tiny models."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import Job
from benchmarks.lab.store import Record, pack
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tlora.utils.packages import library_versions

RANK = 2


def job(family: str = "llama", **changes: Any) -> Job:
    """Ask for an adapter of a tiny model of the family."""
    return Job(tiny_model(family), task(family), **{"rank": RANK, "steps": 20, "samples": 12} | changes)


def record(
    method: str, rate: float, seed: int, split: str, values: Any = None, *, metric: str = "accuracy", **changes: Any
) -> Record:
    """What a store holds of a run; ``values`` are what it made of each sample, None for a run that failed."""
    key = {"model": "tiny", "dtype": "float32", "task": "pairs", "data": {"seed": 0}, "method": method, "arguments": {}}
    key |= {"rank": 2, "steps": 3, "batch_size": 4, "samples": 8, "learning_rate": rate, "seed": seed, "split": split}
    about = {"key": key | changes, "versions": library_versions(), "at": "2026-01-01T00:00:00+00:00"}
    if values is None:
        return about | {"status": "failed", "error": "RuntimeError: no memory"}
    values = np.asarray(values, dtype=float)
    found = {"loss": 1 - values} if metric == "loss" else {"loss": 1 - values, metric: values}
    costs = {"trainable_parameters": 100, "head_parameters": 10, "seconds": 2.5, "preparation_seconds": 0.5}
    done = {"status": "done", "metrics": {name: float(each.mean()) for name, each in found.items()}}
    outcomes = {"outcomes": {name: pack(each) for name, each in found.items()}} if split == "test" else {}
    return about | done | costs | {"peak_bytes": 10**9} | outcomes


def comparison() -> Comparison:
    """Two methods, one of which failed at a rate."""
    rng = np.random.default_rng(0)
    records = [
        record(method, rate, 0, "validation", None if rate > 2e-3 and method == "lora" else [0.5, rate * 100])
        for method in ("lora", "captured")
        for rate in (1e-3, 2e-3, 4e-3)
    ]
    rates = {"lora": 2e-3, "captured": 4e-3}
    tested = [record(m, r, seed, "test", rng.integers(0, 2, 11)) for m, r in rates.items() for seed in range(3)]
    return Comparison.from_records([*records, *tested])
