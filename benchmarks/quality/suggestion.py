"""What `tlora.suggest` says before training, beside what LoRA of several ranks came to in the comparison.

    python -m benchmarks.quality.suggestion

For each task of the first comparison on which more than one rank was run: the bits of its answers, the smallest rank
that holds them, the rank suggested; and the loss on the test samples by rank, less that of rank 8, with 95 %
intervals over seeds, each rank at its own learning rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tlora
from tlora.tasks.load import load_task_of

STORE = Path("benchmarks/results/comparison.jsonl")
BASELINE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = (
        tlora.Comparison.read(STORE)
        .summary("lora", baseline_rank=BASELINE, metric="loss")
        .query("method == 'lora' and seeds > 0")
    )
    rows = []
    for (model, task), ranks in found.groupby(["model", "task"]):
        if len(ranks) > 1:
            rows.append(row(str(model), str(task), ranks, data_of(str(task)), options.samples))
    print(pd.DataFrame(rows).to_markdown(index=False))


def data_of(task: str) -> dict[str, Any]:
    """How the comparison loaded a task."""
    keys = (json.loads(line)["key"] for line in STORE.read_text().splitlines())
    return next(dict(key["data"]) for key in keys if key.get("task") == task)


def row(model: str, task: str, ranks: pd.DataFrame, data: dict[str, Any], samples: int) -> dict[str, Any]:
    """What is suggested for a task, and what training at each rank gave."""
    loaded = load_task_of(model, task, **data)
    base, _ = tlora.load_model(model, num_labels=loaded.num_labels, dtype="float32", device="cpu")
    said = tlora.suggest(base, loaded, samples=samples, progress=False)
    print(f"{model}, {task}:", *said.sentences(), sep="\n  ", flush=True)
    others = ranks.query("rank != @BASELINE").sort_values("rank")
    columns = ("rank", "difference", "difference_low", "difference_high")
    losses = {
        f"rank {rank}": f"{-better:+.3f} ({-high:+.3f} to {-low:+.3f})"
        for rank, better, low, high in others[list(columns)].itertuples(index=False)
    }
    return {"task": task, "kbit": round(said.bits / 1e3, 1), "enough": said.enough, "suggested": said.rank} | losses


if __name__ == "__main__":
    main()
