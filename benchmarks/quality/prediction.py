"""Can one tell before training what freezing `A` will cost? Over all tasks that were compared.

    python -m benchmarks.quality.prediction --picture docs/freezing_cost.png

For each task: what freezing costs, the test loss of `A` frozen along the published directions less that of LoRA of the
same rank, as a part of what LoRA learns; and beside it, before that training,

- the share of the gradient of held-out samples that the frozen directions hold, and that share over random ones';
- what is left of that share after a few steps of LoRA;
- the loss of the base.

Tasks are measured once, into `results/prediction.json`: about two minutes each on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

import tlora
from benchmarks.quality import comparison, pilot, study
from benchmarks.quality.gradient_capture import held_out
from tlora.comparison.store import Store
from tlora.tasks.load import load_task_of
from viz import style

RESULTS = Path("benchmarks/results/prediction.json")
RANK = 8
STEPS = 8
"""Of LoRA, after which the share of the gradient is measured again."""
RATE = 2e-3
"""Its learning rate there: one for all tasks, as none is known before."""
PREDICTORS = {
    "capture": "share of the gradient that the directions hold",
    "over_random": "that share over that of random directions",
    "kept": f"what is left of it after {STEPS} steps of LoRA",
    "loss": "loss of the base, nats",
}


@dataclass(frozen=True)
class Place:
    """A task of a store, and the losses there, by seed, of what freezes `A` and of LoRA of the same rank."""

    store: Path
    task: str
    frozen: pd.Series
    lora: pd.Series

    def key(self) -> dict[str, Any]:
        """The key of one of its runs: model, data and training."""
        return next(r["key"] for r in Store(self.store).read() if r["key"]["task"] == self.task)


def places() -> Iterator[Place]:
    """The newest runs of each task: at the best rate of each, or at that of two which the other seeds choose."""
    corrected = tuple(pilot.PARTS["head"].tasks)
    first = dict.fromkeys(tlora.Comparison.read(comparison.STORE).runs["task"])
    stores = {task: comparison.STORE for task in first} | dict.fromkeys(corrected, pilot.STORE)
    for task, store in (stores | {study.DEVELOPMENT: pilot.STORE}).items():
        frozen = "frozen wc" if task == study.DEVELOPMENT else "tlora"
        runs = tlora.Comparison.read(store, tasks=task, methods=(frozen, "lora"), ranks=RANK).runs
        best = runs[runs["best_rate"]].set_index("seed")
        losses = (best.loc[best["method"] == method, "loss"] for method in (frozen, "lora"))
        yield Place(store, task, *losses)
    for task in study.HELD_OUT:
        there = study.measured(task)
        if {"tlora", study.LORA} <= set(there):
            arms = there["tlora"], there[study.LORA]
            yield Place(study.STORE, task, *(study.tuned(arm, task)["loss"] for arm in arms))


def measured(place: Place) -> dict[str, float]:
    """What can be measured before training; the loss of a classifier is that of its fresh head."""
    key = place.key()
    task = load_task_of(key["model"], place.task, **key["data"])
    model, _ = tlora.load_model(key["model"], num_labels=task.num_labels, seed=0)
    calibration = tlora.calibrate(model, task.calibration(key["samples"]), progress=False)
    subspaces = {"wc": tlora.task_subspaces(model, calibration, max_rank=RANK, kind="wc", progress=False)}
    batches = held_out(task, 32)

    def share() -> pd.Series:
        return tlora.gradient_capture(model, batches, subspaces, [RANK], progress=False).overall().iloc[0]

    before, loss = share(), task.evaluate(model)["loss"]
    allocation = tlora.allocate(calibration.sensitivity, RANK, adapt_ranks=False, adapt_scales=False)
    lora = tlora.attach(model, None, allocation, freeze_a=False)
    tlora.train(
        lora, task, max_steps=STEPS, batch_size=key["batch_size"], learning_rate=RATE, evaluation_limit=0,
        progress=False,
    )  # fmt: skip
    model = lora.merge_and_unload()
    found = {"capture": before["captured"], "over_random": before["captured"] / before["random"], "loss": loss}
    return {name: float(value) for name, value in (found | {"kept": share()["captured"] / before["captured"]}).items()}


def table(found: dict[str, dict[str, float]], all_places: Iterable[Place]) -> pd.DataFrame:
    """One row a task: what freezing costs in nats and as a part of what LoRA learns, and the predictors."""
    rows = []
    for place in all_places:
        frozen, lora = place.frozen.mean(), place.lora.mean()
        cost, learned = frozen - lora, found[place.task]["loss"] - lora
        rows.append({"task": place.task, "cost": cost, "part": cost / learned, **found[place.task]})
    return pd.DataFrame(rows)


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each predictor with what freezing costs; no p, of so few tasks, some alike."""
    return pd.DataFrame(
        {"predictor": words, "with nats": rows[name].corr(rows["cost"], "spearman"),
         "with the part": rows[name].corr(rows["part"], "spearman"), "tasks": len(rows)}
        for name, words in PREDICTORS.items()
    )  # fmt: skip


@style.styled
def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each predictor, a point for each task."""
    figure, axes = plt.subplots(1, len(PREDICTORS), figsize=(3.2 * len(PREDICTORS), 3.4), sharey=True)
    for ax, (name, words), (_, line) in zip(axes, PREDICTORS.items(), correlations(rows).iterrows(), strict=True):
        ax.scatter(rows[name], 100 * rows["part"])
        for _, row in rows.iterrows():
            ax.annotate(row["task"], (row[name], 100 * row["part"]), (4, 3), textcoords="offset points", fontsize=7)
        ax.set_xlabel(words)
        style.headline(ax, f"rank correlation {line['with the part']:+.2f}", f"{line['tasks']} tasks")
    axes[0].set_ylabel("cost of freezing, % of what LoRA learns")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    matplotlib.use("Agg")
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    there = list(places())
    for place in there:
        if place.task not in found:
            found[place.task] = measured(place)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    rows = table(found, there)
    print(rows.to_string(index=False, float_format="{:.3f}".format))
    print(correlations(rows).to_string(index=False, float_format="{:.3f}".format))
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
