"""Two adapters on one base: the loss of both tasks at each pair of weights, and what `tlora.interference` predicts.

    python -m benchmarks.quality.two_adapters           # what is not in the store, then the tables
    python -m benchmarks.quality.two_adapters --table   # print the tables of the store, and write them to the page

For two tasks of SmolLM2-135M and two of MiniLM, each in three ways, two adapters are trained: ``LoRA``, ``A`` random
and trained; ``separate A``, ``A`` frozen along the directions of each task; and ``shared A``, frozen along those of
both tasks together. Their sums with several pairs of weights are then evaluated on both tasks. Each pair of weights is
a line of the store, written when it is measured; adapters are kept in ``runs/two_adapters``. Each way takes about five
minutes of one core for SmolLM2-135M and three for MiniLM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import spearmanr

import tlora
from benchmarks.quality.pages import digest_text, markdown, publish, save_figure
from tlora.recipes import calibrate_on
from tlora.tasks.evaluation import losses_of_samples
from tlora.tasks.load import load_task_for_model
from viz import style

STORE = Path("benchmarks/results/two_adapters.jsonl")
PAGE = Path("docs/results/two_adapters.md")
PICTURE = Path("docs/two_adapters.png")
FOLDER = Path("runs/two_adapters")
FROZEN = tlora.Recipe(
    "frozen", task_subspaces={"kind": "fisher"}, allocate={"adapt_ranks": False, "adapt_scales": False}
)
ARMS = {"LoRA": tlora.Recipe.named("lora"), "shared A": FROZEN, "separate A": FROZEN}
"""How the adapters of each way are made; with a shared `A` from the calibrations of both tasks."""
WEIGHTS = {"smollm2-135m": (0.0, 0.5, 1.0), "minilm": (0.0, 0.25, 0.5, 0.75, 1.0)}
EVALUATED = {"smollm2-135m": 16, "minilm": 48}
"""Test samples of each task."""
CALIBRATED = 16
"""Training samples that a calibration sees."""

PAIRS: dict[str, dict[str, dict[str, Any]]] = {
    "smollm2-135m": {
        "smart_home": {"learning_rate": 2e-3, "batch_size": 4, "max_steps": 60},
        "spell_backward": {"learning_rate": 4e-3, "batch_size": 4, "max_steps": 24},
    },
    "minilm": {
        "rotten_tomatoes": {"learning_rate": 4e-3, "batch_size": 8, "max_steps": 48},
        "states": {"learning_rate": 4e-3, "batch_size": 8, "max_steps": 24},
    },
}
"""How the adapter of each task is trained, by model."""
SIZES: dict[str, dict[str, Any]] = {
    "spell_backward": {"train": 200, "validation": 0, "test": 64},
    "rotten_tomatoes": {"train": 400},
}


def main() -> None:
    options = _arguments()
    if not options.table:
        for model in options.models:
            bench = Bench(model)
            for arm in options.arms:
                bench.measure(arm)
    if STORE.exists():
        publish(PAGE, "two_adapters", TABLES)
        picture()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="print what is there")
    return parser.parse_args()


def write_states() -> Path:
    """The requests of the smart home with what they ask for as a label: on, off or a level."""
    folder = FOLDER / "states"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = map(json.loads, Path(f"notebooks/data/smart_home/{split}.jsonl").read_text().splitlines())
        states = [(row["prompt"], row["completion"].partition("=")[2]) for row in rows]
        lines = [{"text": text, "label": state if state in ("on", "off") else "level"} for text, state in states]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def load_pair_task(model: str, task: str) -> tlora.Task:
    """One of the tasks of `PAIRS`, for its model."""
    if task == "states":
        place = str(write_states())
    else:
        place = "notebooks/data/smart_home" if task == "smart_home" else task
    return load_task_for_model(model, place, **SIZES.get(task, {}))


class Bench:
    """A base with two tasks, and their calibrations."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks = {task: load_pair_task(name, task) for task in PAIRS[name]}

    def base(self, task: str) -> Any:
        """A fresh base, with as many classes as the task has."""
        return tlora.load_model(self.name, num_labels=self.tasks[task].num_labels, dtype="float32", device="cpu")[0]

    @cached_property
    def calibrations(self) -> dict[str, tlora.Calibration]:
        """Of training samples of each task."""
        return {
            name: calibrate_on(self.base(name), task, FROZEN.needs, CALIBRATED, progress=False)
            for name, task in self.tasks.items()
        }

    def adapter(self, arm: str, task: str) -> Path:
        """Where an adapter is kept."""
        return FOLDER / self.name / arm / task

    def train(self, arm: str) -> None:
        """Train the adapters of both tasks that are not there yet."""
        for seed, (name, task) in enumerate(self.tasks.items()):
            folder = self.adapter(arm, name)
            if (folder / "adapter_model.safetensors").exists():
                continue
            first, second = self.calibrations.values()
            calibration = first.merge(second) if arm == "shared A" else self.calibrations[name]
            base = self.base(name)
            plan = tlora.prepare(base, task, ARMS[arm], 8, calibration=calibration, progress=False)
            adapted = tlora.attach(base, plan, seed=seed)
            options = PAIRS[self.name][name]
            if arm == "LoRA":
                options = options | {"learning_rate": options["learning_rate"] / 2}
            run = tlora.train(adapted, task, evaluation_limit=0, progress=False, **options)
            run.save(folder)
            print(self.name, arm, name, f"{run.seconds:.0f} s", flush=True)

    def measure(self, arm: str) -> None:
        """Losses of both tasks at each pair of weights that is not in the store, and what is predicted of them."""
        known = [tuple(row["weights"]) for row in rows() if (row["model"], row["arm"]) == (self.name, arm)]
        missing = [weights for weights in itertools.product(WEIGHTS[self.name], repeat=2) if weights not in known]
        if not missing:
            return
        self.train(arm)
        folders = {name: self.adapter(arm, name) for name in self.tasks}
        found = tlora.interference(*folders.values(), tuple(self.calibrations.values()))
        overlaps = found.to_frame()[["reads", "writes"]].mean().to_dict()
        about = {"model": self.name, "arm": arm, "tasks": list(self.tasks), "on": found.overall} | overlaps
        bases = {name: self.base(name) for name in self.tasks}
        for weights in missing:
            losses = [self.loss(bases[name], name, folders, weights) for name in self.tasks]
            row = about | {"weights": weights, "losses": losses, "predicted": found.disturbance(*weights)}
            with STORE.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(self.name, arm, weights, losses, flush=True)

    def loss(self, base: Any, name: str, folders: dict[str, Path], weights: tuple[float, float]) -> float:
        """Loss on a task of the sum of both adapters with these weights, with the task's own head."""
        with tempfile.TemporaryDirectory() as place:
            head = folders[name] if self.tasks[name].num_labels else None
            parts = dict(zip(map(str, folders.values()), weights, strict=True))
            combined = tlora.combine(parts, head=None if head is None else str(head))
            adapted = tlora.load_adapter(combined.save_adapter(place), base)
        task = self.tasks[name]
        samples = task.test.select(range(EVALUATED[self.name]))
        loss = float(losses_of_samples(adapted, task, samples, 16).mean())
        tlora.detach(adapted)
        return loss


def rows() -> list[dict[str, Any]]:
    """The lines of the store: one a model, an arm and a pair of weights."""
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def records() -> list[dict[str, Any]]:
    """The models and arms of which every pair of weights was measured, each with its ``points``."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows():
        group = groups.setdefault((row["model"], row["arm"]), row | {"points": []})
        group["points"].append({key: row[key] for key in ("weights", "losses", "predicted")})
    order = list(itertools.product(PAIRS, ARMS))
    complete = [key for key, group in groups.items() if len(group["points"]) == len(WEIGHTS[key[0]]) ** 2]
    return [groups[key] for key in sorted(complete, key=order.index)]


def points(record: dict[str, Any]) -> pd.DataFrame:
    """One row a pair of weights and a task: loss, how much above that of the task's own adapter, and the prediction."""
    alone = {t: next(p["losses"][t] for p in record["points"] if p["weights"] == OWN[t]) for t in (0, 1)}
    lines = [
        {
            "task": name,
            "own": p["weights"][t],
            "other": p["weights"][1 - t],
            "loss": p["losses"][t],
            "more": p["losses"][t] - alone[t],
            "predicted": p["predicted"][t],
        }
        for p in record["points"]
        for t, name in enumerate(record["tasks"])
    ]
    return pd.DataFrame(lines)


OWN = ([1.0, 0.0], [0.0, 1.0])
"""Weights of each task's adapter alone."""


def grid_table() -> str:
    """The loss on each task without adapters, with its own, with the other, with both, and with half of both."""
    lines = []
    for record in records():
        frame = points(record)
        for name, part in frame.groupby("task", sort=False):
            losses = part.set_index(["own", "other"])["loss"]
            shown = [losses[pair] for pair in ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))]
            lines.append([record["model"], record["arm"], str(name), *(f"{loss:.3f}" for loss in shown)])
    return markdown(["model", "adapters", "task", "base", "its own", "the other", "sum", "half of each"], lines)


def prediction_table() -> str:
    """How well the predicted disturbance tells the loss: rank correlations over the grid, and over tasks and arms."""
    lines, numbers = [], []
    for record in records():
        for t, (name, part) in enumerate(points(record).groupby("task", sort=False)):
            rho = spearmanr(part["predicted"], part["loss"]).statistic
            plain = spearmanr((part["own"] - 1) ** 2 + part["other"] ** 2, part["loss"]).statistic
            more = part.set_index(["own", "other"])["more"]
            on, added, lost = record["on"][t], more[1, 1], more[1, 1] / more[0, 0]
            numbers.append((on, added, lost))
            shown = [f"{on:.2f}", f"{added:+.3f}", f"{lost:.1%}", f"{rho:+.2f}", f"{plain:+.2f}"]
            lines.append([record["model"], record["arm"], str(name), *shown])
    on, added, lost = zip(*numbers, strict=True)
    heads = ["model", "adapters", "task", "interference", "loss added", "of the gain", "correlation", "of the weights"]
    across = [spearmanr(on, values).statistic for values in (added, lost)]
    with_loss = f"interference has a rank correlation of {across[0]:+.2f} with the loss added"
    with_share = f"and of {across[1]:+.2f} with its share of the gain"
    return f"{markdown(heads, lines)}\n\nOver these {len(numbers)} rows, {with_loss}, {with_share}."


def overlap_table() -> str:
    """Mean overlap of what both adapters read and write."""
    lines = [[r["model"], r["arm"], f"{r['reads']:.1%}", f"{r['writes']:.1%}"] for r in records()]
    return markdown(["model", "adapters", "overlap of reads", "overlap of writes"], lines)


@style.styled
def picture() -> None:
    """Measured loss against predicted disturbance, a panel a model, a color an arm, a marker a task."""
    found = records()
    models = list(dict.fromkeys(record["model"] for record in found))
    figure, axes = plt.subplots(1, len(models), figsize=(4.4 * len(models), 4.4), layout="constrained", squeeze=False)
    colors = dict(zip(ARMS, style.colors(len(ARMS)), strict=True))
    for ax, model in zip(axes[0], models, strict=True):
        for record in (each for each in found if each["model"] == model):
            for marker, (name, part) in zip("os", points(record).groupby("task", sort=False), strict=False):
                look = {"s": 20, "color": colors[record["arm"]], "marker": marker, "alpha": 0.7, "linewidth": 0}
                ax.scatter(part["predicted"], part["loss"], label=f"{record['arm']}, {name}", **look)
        ax.set_xlabel("predicted: 0 the task's own adapter, 1 the base")
        style.headline(ax, f"{model}: losses rise, less beyond 1")
        ax.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    axes[0][0].set_ylabel("measured loss, nats")
    save_figure(figure, PICTURE, digest_text(STORE.read_text()))


TABLES = {"grid": grid_table, "prediction": prediction_table, "overlap": overlap_table}

if __name__ == "__main__":
    main()
