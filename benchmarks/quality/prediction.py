"""Can the cost of freezing `A` be predicted before training? Over all tasks that were compared.

    python -m benchmarks.quality.prediction             # measure the tasks that are not measured yet
    python -m benchmarks.quality.prediction --table     # print the results, and write them to the page

The cost of freezing is the test loss of `A` frozen along the published directions minus that of LoRA of the same rank,
also as a part of what LoRA learns. Three numbers that are known before that training may predict it:

- the share of the gradient of held-out samples that the frozen directions hold;
- that share after a few steps of LoRA, as a part of what it was;
- the loss of the base.

Tasks are measured once, into `benchmarks/results/prediction.json`: about two minutes each on two cores.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import tlora
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, pilot, study
from benchmarks.quality.gradient_capture import held_out
from benchmarks.quality.pages import digest_text, fill_blocks, markdown, publish, save_figure
from tlora.tasks.load import load_task_for_model
from viz import style

RESULTS = Path("benchmarks/results/prediction.json")
RANK = 8
STEPS = 8
"""Steps of LoRA after which the share of the gradient is measured again."""
RATE = 2e-3
"""Learning rate of these steps: one for all tasks, as the best one is not known before training."""
PREDICTORS = {
    "capture": "share of the gradient that the directions hold",
    "kept": f"what becomes of it in {STEPS} steps of LoRA",
    "loss": "loss of the base, nats",
}


@dataclass(frozen=True)
class TaskLosses:
    """A task of a store, and its test losses by seed with `A` frozen and with LoRA of the same rank."""

    store: Path
    task: str
    frozen: pd.Series
    lora: pd.Series

    def key(self) -> dict[str, Any]:
        """The key of one of its runs: model, data and training."""
        return next(r["key"] for r in Store(self.store).read() if r["key"]["task"] == self.task)


def task_losses() -> Iterator[TaskLosses]:
    """The newest runs of each task, at the best rate of each method (leaving out each seed on the held-out tasks)."""
    corrected = tuple(pilot.PARTS["head"].tasks)
    first = dict.fromkeys(Comparison.read(comparison.STORE).runs["task"])
    stores = {task: comparison.STORE for task in first} | dict.fromkeys(corrected, pilot.STORE)
    for task, store in (stores | {study.DEVELOPMENT: pilot.STORE}).items():
        frozen = "frozen wc" if task == study.DEVELOPMENT else "score"
        runs = Comparison.read(store, tasks=task, methods=(frozen, "lora"), ranks=RANK).runs
        best = runs[runs["best_rate"]].set_index("seed")
        losses = (best.loc[best["method"] == method, "loss"] for method in (frozen, "lora"))
        yield TaskLosses(store, task, *losses)
    for task in study.counting_tasks():
        arms = study.FEWER["frozen wc"], study.ARMS[study.LORA]
        yield TaskLosses(study.STORE, task, *(study.leave_one_out(arm, task)["loss"] for arm in arms))


def measure(losses: TaskLosses) -> dict[str, float]:
    """The predictors of a task; the loss of a classifier is that of its fresh head."""
    key = losses.key()
    task = load_task_for_model(key["model"], losses.task, **key["data"])
    model, _ = tlora.load_model(key["model"], num_labels=task.num_labels, seed=0)
    plan = tlora.prepare(model, task, pilot.frozen_recipe("wc"), RANK, samples=key["samples"], progress=False)
    batches = held_out(task, 32)

    def share() -> float:
        captured = tlora.gradient_capture(model, batches, {"wc": plan.subspaces}, [RANK], progress=False)
        return captured.overall()["captured"].item()

    before, loss = share(), task.evaluate(model)["loss"]
    lora = tlora.attach(model, None, plan.allocation, freeze_a=False)
    tlora.train(
        lora, task, max_steps=STEPS, batch_size=key["batch_size"], learning_rate=RATE, evaluation_limit=0,
        progress=False,
    )  # fmt: skip
    model = lora.merge_and_unload()
    predictors = {"capture": before, "kept": share() / before, "loss": loss}
    return {name: float(value) for name, value in predictors.items()}


def table(results: dict[str, dict[str, float]], tasks: Iterable[TaskLosses]) -> pd.DataFrame:
    """One row a task: the cost of freezing in nats and as a part of what LoRA learns, and the predictors."""
    rows = []
    for losses in tasks:
        frozen, lora = losses.frozen.mean(), losses.lora.mean()
        cost, learned = frozen - lora, results[losses.task]["loss"] - lora
        rows.append({"task": losses.task, "cost": cost, "part": cost / learned, **results[losses.task]})
    return pd.DataFrame(rows)


def correlations(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each predictor with the cost; without p, since tasks are few and some similar."""
    return pd.DataFrame(
        {"predictor": words, "with nats": rows[name].corr(rows["cost"], "spearman"),
         "with the part": rows[name].corr(rows["part"], "spearman"), "tasks": len(rows)}
        for name, words in PREDICTORS.items()
    )  # fmt: skip


def measured_table() -> pd.DataFrame:
    """`table` of the measured tasks."""
    results = json.loads(RESULTS.read_text())
    return table(results, [losses for losses in task_losses() if losses.task in results])


# --- On the page ---


def tasks_table() -> str:
    """Each task with the cost of freezing and the predictors."""
    lines = []
    for row in measured_table().sort_values("part").itertuples():
        before = f"{100 * row.capture:.0f} %", f"{100 * row.capture * row.kept:.0f} %", f"{row.loss:.2f}"
        lines.append([row.task, f"{row.cost:+.3f}", f"{100 * row.part:+.1f} %", *before])
    heads = ["task", "freezing costs, nats", "of what LoRA learns"]
    return markdown([*heads, "gradient held", f"after {STEPS} steps", "base's loss"], lines)


def correlations_table() -> str:
    """The correlation of each predictor with the cost, over the tasks."""
    lines = [
        [row[1], f"{row[2]:+.2f}", f"{row[3]:+.2f}", f"{row[4]}"] for row in correlations(measured_table()).itertuples()
    ]
    return markdown(["before training", "with the cost, nats", "with its part", "tasks"], lines)


BLOCKS = {"tasks": tasks_table, "correlations": correlations_table}
"""Tables on the page, by their titles."""
PICTURE = Path("docs/freezing_cost.png")


def render(text: str) -> str:
    """The page with the tables of the results."""
    return fill_blocks(text, "prediction", BLOCKS)


def digest() -> str:
    """Identifies the results that the picture shows."""
    return digest_text(tasks_table())


@style.styled
def draw(rows: pd.DataFrame) -> Figure:
    """A panel for each predictor and for the cost in nats and as a part of what LoRA learns, a point for each task."""
    size = (3 * len(PREDICTORS), 5.2)
    figure, axes = plt.subplots(2, len(PREDICTORS), figsize=size, sharex="col", sharey="row", layout="constrained")
    looks = list(zip(style.colors(len(rows)), style.markers(len(rows)), strict=True))
    line = correlations(rows).set_index("predictor")
    for column, (name, words) in zip(axes.T, PREDICTORS.items(), strict=True):
        for ax, of, correlation in zip(column, ("cost", "part"), ("with nats", "with the part"), strict=True):
            for row, (color, marker) in zip(rows.to_dict("records"), looks, strict=True):
                ax.plot(row[name], row[of], marker, color=color, label=row["task"])
            style.headline(ax, f"rank correlation {line.loc[words, correlation]:+.2f}")
        column[-1].set_xlabel(textwrap.fill(words, 28))
    axes[0, 0].set_ylabel("freezing costs, nats")
    axes[1, 0].set_ylabel("of what LoRA learns")
    axes[1, 0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing; write tables and picture of the results")
    if not parser.parse_args().table:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for losses in task_losses():
            if losses.task not in results:
                results[losses.task] = measure(losses)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        return
    save_figure(draw(measured_table()), PICTURE, digest())
    publish(study.PAGE, "prediction", BLOCKS)


if __name__ == "__main__":
    main()
