"""How much of what the directions of each kind read is the same in all samples, and what training along them gave.

One table over models and tasks: the share of ``z^2`` on constant tokens with its interval, beside the held-out loss of
the trained methods in the stored comparison, where there is one. The two need not agree. Run it from the root of the
project::

    python benchmarks/quality/directions_read.py
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import pandas as pd

import tlora
from tlora.tasks.presets import PRESETS
from tlora.tasks.task import first_batches

STORE = Path("benchmarks/results/comparison.jsonl")
PAIRS = (
    ("smollm2-135m", "notebooks/data/smart_home"),
    ("smollm2-135m", "family_relationships"),
    ("smollm2-135m", "chain_sum"),
    ("minilm", "rotten_tomatoes"),
)
TRAINED = {"wc": "score", "g": "score of kind g", "random": "lora-fa"}
"""The method of the stored comparison that trains along a kind: the first two with ranks by sensitivity."""


def main() -> None:
    """Print the table, a row for each model, task and kind."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=32, help="to calibrate on, and as many held out")
    parser.add_argument("--output", type=Path, default=None, help="file of the table, as JSON lines")
    args = parser.parse_args()
    losses, tables = stored_losses(), []
    for name, data in PAIRS:
        table = shares(name, data, args.samples)
        table["trained"] = [losses.get((name, Path(data).name, kind)) for kind in table["kind"]]
        tables.append(table)
        print(table.round(3).to_string(index=False), flush=True)
    if args.output:
        pd.concat(tables).to_json(args.output, orient="records", lines=True)


def shares(name: str, data: str, samples: int) -> pd.DataFrame:
    """The shares of all modules together, and how much two halves of the samples agree."""
    options = {"num_labels": 2} if name == "minilm" else {}
    model, tokenizer = tlora.load_model(name, **options)
    sizes = {} if data in PRESETS or Path(data).exists() else {"train": 256, "validation": samples, "test": 8}
    task = tlora.load_task(data, tokenizer, **sizes)
    calibration = tlora.calibrate(model, task.calibration(samples), gradient=True, progress=False)
    kinds = {
        kind: tlora.task_subspaces(model, calibration, max_rank=8, kind=kind, progress=False) for kind in ("wc", "g")
    }
    read = tlora.direction_activations(
        model, kinds, first_batches(task, samples), tokenizer=tokenizer, need=True, progress=False
    )
    table = read.constant_share().drop(columns=["prompt", "labels"])
    needed = read.constant_share(need=True).set_index("kind")["constant"]
    agreement = read.to_frame().groupby("kind")["agreement"].mean()
    table["needed"], table["agreement"] = table["kind"].map(needed), table["kind"].map(agreement)
    table.insert(0, "task", Path(data).name)
    table.insert(0, "model", name)
    return table


def stored_losses() -> dict[tuple[str, str, str], float]:
    """Mean held-out loss at rank 8 over the seeds that all methods have, by model, task and kind."""
    found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    kinds = {method: kind for kind, method in TRAINED.items()}
    for line in STORE.read_text().splitlines():
        row = json.loads(line)
        key = row["key"]
        is_compared = key["split"] == "test" and key["rank"] == 8 and key["seed"] in (0, 1, 2)
        if is_compared and key["method"] in kinds and row["status"] == "done":
            found[key["model"], key["task"], kinds[key["method"]]].append(row["metrics"]["loss"])
    return {key: sum(values) / len(values) for key, values in found.items()}


if __name__ == "__main__":
    main()
