"""Two adapters on one base: the loss of both tasks at each pair of weights, and what `tlora.interference` predicts.

    python -m benchmarks.quality.two_adapters           # runs that are not in the store, then the table
    python -m benchmarks.quality.two_adapters --table   # print the tables of the store, and write them to the page

For two tasks of SmolLM2-135M and two of MiniLM, each in three ways, two adapters are trained: ``LoRA``, ``A`` random
and trained; ``tlora``, ``A`` frozen along the directions of each task; and ``shared A``, frozen along those of both
tasks together. Their sums with 16 pairs of weights are then evaluated on both tasks. Adapters are kept in
``runs/two_adapters``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

import tlora
from benchmarks.quality.pages import publish
from tlora.tasks.evaluation import losses_of_samples
from tlora.tasks.load import load_task_for_model

STORE = Path("benchmarks/results/two_adapters.jsonl")
PAGE = Path("docs/results/two_adapters.md")
PICTURE = Path("docs/two_adapters.png")
FOLDER = Path("runs/two_adapters")
ARMS = ("LoRA", "shared A", "tlora")
WEIGHTS = (0.0, 0.4, 0.7, 1.0)
EVALUATED = 32
"""Test samples of each task."""

PAIRS: dict[str, dict[str, dict[str, Any]]] = {
    "smollm2-135m": {
        "smart_home": {"learning_rate": 2e-3, "batch_size": 4, "max_steps": 60},
        "letter_counting": {"learning_rate": 4e-3, "batch_size": 4, "max_steps": 60},
    },
    "minilm": {
        "rotten_tomatoes": {"learning_rate": 4e-3, "batch_size": 16, "max_steps": 60},
        "states": {"learning_rate": 4e-3, "batch_size": 16, "max_steps": 40},
    },
}
"""How the adapter of each task is trained, by model."""
SIZES: dict[str, dict[str, Any]] = {
    "letter_counting": {"train": 400, "test": EVALUATED},
    "rotten_tomatoes": {"train": 960},
}


def main() -> None:
    options = _arguments()
    if not options.table:
        for model in options.models:
            bench = Bench(model)
            for arm in ARMS:
                bench.train(arm)
            if not options.only_train:
                for arm in ARMS:
                    bench.measure(arm)
    if STORE.exists():
        publish(PAGE if PAGE.exists() else None, "two_adapters", {"grid": grid_table, "prediction": prediction_table})
        picture()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--only-train", action="store_true", help="train the adapters and measure nothing")
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


class Bench:
    """A base with two tasks, and their calibrations."""

    def __init__(self, name: str) -> None:
        self.name = name
        places = {"smart_home": "notebooks/data/smart_home", "states": str(write_states())}
        self.tasks = {
            task: load_task_for_model(name, places.get(task, task), **SIZES.get(task, {})) for task in PAIRS[name]
        }

    def base(self, task: str) -> Any:
        """A fresh base, with as many classes as the task has."""
        return tlora.load_model(self.name, num_labels=self.tasks[task].num_labels, dtype="float32", device="cpu")[0]

    @cached_property
    def calibrations(self) -> dict[str, tlora.Calibration]:
        """Of 32 training samples of each task."""
        return {
            name: tlora.calibrate(self.base(name), task.calibration(32), fisher=True, progress=False)
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
            own = self.calibrations[name]
            first, second = self.calibrations.values()
            base, subspaces = self.base(name), None
            if arm != "LoRA":
                known = first.merge(second) if arm == "shared A" else own
                subspaces = tlora.task_subspaces(base, known, max_rank=8, kind="fisher", progress=False)
            allocation = tlora.allocate(own.sensitivity, 8, adapt_ranks=False, adapt_scales=False)
            adapted = tlora.attach(base, subspaces, allocation, arm != "LoRA", seed=seed)
            options = PAIRS[self.name][name]
            if arm == "LoRA":
                options = options | {"learning_rate": options["learning_rate"] / 2}
            run = tlora.train(adapted, task, evaluation_limit=0, progress=False, **options)
            run.save(folder)
            print(self.name, arm, name, f"{run.seconds:.0f} s", flush=True)

    def measure(self, arm: str) -> None:
        """Losses of both tasks at each pair of weights, and what is predicted of them."""
        if any((record["model"], record["arm"]) == (self.name, arm) for record in records()):
            return
        folders = {name: self.adapter(arm, name) for name in self.tasks}
        found = tlora.interference(*folders.values(), tuple(self.calibrations.values()))
        bases = {name: self.base(name) for name in self.tasks}
        points = []
        for weights in itertools.product(WEIGHTS, WEIGHTS):
            losses = [self.loss(bases[name], name, folders, weights) for name in self.tasks]
            points.append({"weights": weights, "losses": losses, "predicted": found.disturbance(*weights)})
            print(self.name, arm, points[-1], flush=True)
        about = {"model": self.name, "arm": arm, "tasks": list(self.tasks)}
        frame = found.to_frame()[["reads", "writes"]].mean()
        overall = {"on": found.overall, "reads": float(frame["reads"]), "writes": float(frame["writes"])}
        with STORE.open("a") as file:
            file.write(json.dumps(about | overall | {"points": points}) + "\n")

    def loss(self, base: Any, name: str, folders: dict[str, Path], weights: tuple[float, float]) -> float:
        """Loss on a task of the sum of both adapters with these weights, with the task's own head."""
        with tempfile.TemporaryDirectory() as place:
            head = folders[name] if self.tasks[name].num_labels else None
            parts = dict(zip(map(str, folders.values()), weights, strict=True))
            combined = tlora.combine(parts, head=None if head is None else str(head))
            adapted = tlora.load(combined.save_adapter(place), base)
        task = self.tasks[name]
        rows = task.test.select(range(min(EVALUATED, len(task.test))))
        loss = float(losses_of_samples(adapted, task, rows, 16).mean())
        tlora.detach(adapted)
        return loss


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def points(record: dict[str, Any]) -> pd.DataFrame:
    """One row a pair of weights and task: loss, predicted disturbance, and loss beyond that of the own adapter."""
    own = {(1.0, 0.0): 0, (0.0, 1.0): 1}
    alone = {own[tuple(p["weights"])]: p["losses"] for p in record["points"] if tuple(p["weights"]) in own}
    rows = [
        {
            "task": name,
            "own weight": p["weights"][t],
            "other weight": p["weights"][1 - t],
            "loss": p["losses"][t],
            "predicted": p["predicted"][t],
            "more": p["losses"][t] - alone[t][t],
        }
        for p in record["points"]
        for t, name in enumerate(record["tasks"])
    ]
    return pd.DataFrame(rows)
