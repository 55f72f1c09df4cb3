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
from scipy import stats

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
PREDICTORS = {
    "capture": "share of the gradient that the directions hold",
    "over_random": "that share over that of random directions",
    "kept": f"what is left of it after {STEPS} steps of LoRA",
    "loss": "loss of the base, nats",
}


@dataclass(frozen=True)
class Place:
    """A task of a store, and what freezes `A` there; its rate and that of LoRA, where they are not the best ones."""

    store: Path
    task: str
    frozen: str
    rates: tuple[float, float] | None = None

    def rows(self) -> pd.DataFrame:
        """The runs on the test split of the frozen method and of LoRA, at their rates."""
        methods = (self.frozen, "lora")
        runs = tlora.Comparison.read(self.store, tasks=self.task, methods=methods, ranks=RANK).runs
        if self.rates is None:
            return runs[runs["best_rate"]]
        at = dict(zip(methods, self.rates, strict=True))
        return runs[(runs["split"] == "test") & (runs["learning_rate"] == runs["method"].map(at))]

    def key(self) -> dict[str, Any]:
        """The key of one of LoRA's runs: its model, data and training."""
        rate = self.rows().query("method == 'lora'")["learning_rate"].iloc[0]
        wanted = {"task": self.task, "method": "lora", "rank": RANK, "learning_rate": rate, "split": "test"}
        return next(r["key"] for r in Store(self.store).read() if wanted.items() <= r["key"].items())


def places() -> Iterator[Place]:
    """The newest runs of each task."""
    corrected = tuple(pilot.PARTS["head"].tasks)
    read = tlora.Comparison.read(comparison.STORE).runs["task"]
    yield from (Place(comparison.STORE, task, "tlora") for task in dict.fromkeys(read) if task not in corrected)
    yield from (Place(pilot.STORE, task, "tlora") for task in corrected)
    wc, lora = study.ARMS["frozen wc"], study.ARMS["LoRA, rank 8"]
    rates = study.best_rate(wc) / 2, study.best_rate(lora) / 2
    yield Place(pilot.STORE, study.DEVELOPMENT, wc.name)
    yield from (Place(study.STORE, task, wc.name, rates) for task in study.HELD_OUT)


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
        lora, task, max_steps=STEPS, batch_size=key["batch_size"], learning_rate=key["learning_rate"],
        evaluation_limit=0, progress=False,
    )  # fmt: skip
    model = lora.merge_and_unload()
    found = {"capture": before["captured"], "over_random": before["captured"] / before["random"], "loss": loss}
    return {name: float(value) for name, value in (found | {"kept": share()["captured"] / before["captured"]}).items()}


def table(found: dict[str, dict[str, float]], all_places: Iterable[Place]) -> pd.DataFrame:
    """One row a task: what freezing costs, and the predictors."""
    rows = []
    for place in all_places:
        losses = place.rows().groupby("method")["loss"].mean()
        cost = losses[place.frozen] - losses["lora"]
        learned = found[place.task]["loss"] - losses["lora"]
        rows.append({"task": place.task, "cost": cost, "part": cost / learned, **found[place.task]})
    return pd.DataFrame(rows)


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each predictor with the part of what LoRA learns that freezing costs."""
    lines = []
    for name, words in PREDICTORS.items():
        result = stats.spearmanr(rows[name], rows["part"])
        lines.append({"predictor": words, "correlation": result.statistic, "p": result.pvalue, "tasks": len(rows)})
    return pd.DataFrame(lines)


@style.styled
def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each predictor, a point for each task."""
    figure, axes = plt.subplots(1, len(PREDICTORS), figsize=(3.2 * len(PREDICTORS), 3.4), sharey=True)
    for ax, (name, words), (_, line) in zip(axes, PREDICTORS.items(), correlations(rows).iterrows(), strict=True):
        ax.scatter(rows[name], 100 * rows["part"])
        for _, row in rows.iterrows():
            ax.annotate(row["task"], (row[name], 100 * row["part"]), (4, 3), textcoords="offset points", fontsize=7)
        ax.set_xlabel(words)
        style.headline(ax, f"rank correlation {line['correlation']:+.2f}", f"p = {line['p']:.2f}")
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
