"""How much of the true gradient a frozen A can follow, on a real model and task, and how stable the allocation is.

Five questions, each answered with a table and, with ``--output``, a picture:

1. What share of the gradient of held-out samples does each kind of subspace hold, next to chance and to the best?
2. Do the task subspaces of two tasks differ more than those of two samples of one task?
3. Would fewer samples have ranked the modules, and planned the ranks, alike?
4. How much of the energy of ``W C`` does each kind hold?
5. What is left of the first answer once LoRA, whose ``A`` is free, has been trained, and where has it gone itself?

Run it from the root of the project::

    python benchmarks/quality/gradient_capture.py --samples 32 --stability 128 --output gradient_capture/
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor

import tlora
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import Result
from tlora.serving.uniform_lora import uniform_lora
from tlora.utils.defaults import Kind

COUNTS = (8, 16, 32, 64, 128)


def main() -> None:
    options = arguments()
    model, tokenizer = tlora.load_model(options.model, device=options.device)
    task, other = (tlora.load_task(name, tokenizer) for name in (options.task, options.other))
    with timed(f"calibration, {options.samples} samples with gradients"):
        calibration = tlora.calibrate(model, task.calibration(options.samples), gradient=True)
    with timed("subspaces of six kinds"):
        subspaces = {kind: subspace(model, calibration, options, kind) for kind in get_args(Kind)}
    measured: dict[str, Result] = {}
    measured |= captures(model, task, calibration, subspaces, options)
    measured |= tasks(model, task, other, subspaces["wc"], options)
    if options.stability:
        stability(model, task, options)
    if options.steps:
        measured |= trained(model, task, calibration.sensitivity, subspaces, options)
    if options.output:
        draw(measured, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="family_relationships")
    parser.add_argument("--other", default="chain_sum", help="the task to compare with")
    parser.add_argument("--samples", type=int, default=32, help="to calibrate on, and as many held out")
    parser.add_argument("--stability", type=int, default=128, help="samples for the stability; 0 leaves it out")
    parser.add_argument("--steps", type=int, default=60, help="of four samples, of LoRA's training; 0 leaves it out")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of LoRA")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--device", default=None)
    parser.add_argument("--output", type=Path, default=None, help="folder for pictures")
    return parser.parse_args()


def captures(
    model: Any, task: tlora.Task, calibration: tlora.Calibration, subspaces: dict[str, tlora.Subspaces], options: Any
) -> dict[str, Result]:
    """Questions 1 and 4."""
    with timed(f"gradient capture, {options.samples} held-out samples"):
        batches = held_out(task, options.samples)
        capture = tlora.gradient_capture(model, batches, subspaces, options.ranks, task=task.name)
    show("Share of the squared gradient of held-out samples, all modules together", capture.overall())
    by_projection = capture.overall("projection").query("kind in ('wc', 'g') and rank == @options.ranks[0]")
    show("The same by projection", by_projection)
    return {"capture": capture}


def tasks(
    model: Any, task: tlora.Task, other: tlora.Task, subspaces: tlora.Subspaces, options: Any
) -> dict[str, Result]:
    """Question 2."""
    found = {}
    with timed(f"calibration on other samples, and on {other.name}"):
        sides = {
            f"other samples of {task.name}": held_out(task, options.samples),
            other.name: other.calibration(options.samples),
        }
        for label, batches in sides.items():
            side = subspace(model, tlora.calibrate(model, batches, task=label), options, "wc")
            found[label] = tlora.align(subspaces, side, max(options.ranks), labels=(task.name, label))
    for rank in options.ranks:
        tables = {label: alignment.at(rank).groupby("projection", sort=False) for label, alignment in found.items()}
        columns = {label: table["overlap"].mean() for label, table in tables.items()}
        chance = tables[other.name]["random"].mean().rename("by chance")
        show(
            f"Overlap of kind wc with that of {task.name} at rank {rank}",
            pd.DataFrame(columns).join(chance).reset_index(),
        )
    return {"samples": found[f"other samples of {task.name}"], "tasks": found[other.name]}


def stability(model: Any, task: tlora.Task, options: Any) -> None:
    """Question 3."""
    with timed(f"calibration, {options.stability} samples"):
        sensitivity = tlora.calibrate(model, task.calibration(options.stability)).sensitivity
    below = [count for count in COUNTS if count < options.stability]
    show("Ranking of the modules by fewer samples", tlora.ranking_stability(sensitivity, below).drop(columns="top"))
    allocation = tlora.allocate(sensitivity, rank=options.ranks[0])
    moved = tlora.allocation_stability(sensitivity, allocation, COUNTS)
    title = f"Part of the ranks (rank {options.ranks[0]}) that an allocation from fewer samples puts elsewhere"
    show(title, moved.rename(columns={"moved_low": "low", "moved_high": "high"}))


def trained(
    model: Any, task: tlora.Task, scores: Sensitivity, subspaces: dict[str, tlora.Subspaces], options: Any
) -> dict[str, Result]:
    """Question 5; the model is another one afterwards."""
    rank = options.ranks[0]
    with timed(f"{options.steps} steps of LoRA of rank {rank}"):
        uniform = tlora.allocate(scores, rank=rank, adapt_ranks=False, adapt_scales=False)
        lora = tlora.attach(model, None, uniform, freeze_a=False)
        start = {name: torch.linalg.qr(update.a.T).Q.T for name, update in uniform_lora(lora).updates.items()}
        rate = options.learning_rate
        tlora.train(lora, task, max_steps=options.steps, batch_size=4, learning_rate=rate, evaluation_limit=8)
    updates = {name: update.matrix() for name, update in uniform_lora(lora).updates.items()}
    directions = {kind: {n: rows.basis(n, rank) for n in updates} for kind, rows in subspaces.items()}
    whole = sum(float(update.square().sum()) for update in updates.values())
    within = {
        kind: sum(float((updates[n] @ rows[n].T).square().sum()) for n in updates) / whole
        for kind, rows in (directions | {"LoRA's own start": start}).items()
    }
    with timed(f"gradient capture after it, {options.samples} held-out samples"):
        moved = lora.merge_and_unload()
        capture = tlora.gradient_capture(
            moved, held_out(task, options.samples), subspaces, options.ranks, task=task.name
        )
    show("Share of the squared gradient of held-out samples after the training of LoRA", capture.overall())
    show(f"Share of LoRA's own update within the directions at rank {rank}", pd.DataFrame([within]))
    return {"capture_after": capture}


def subspace(model: Any, calibration: tlora.Calibration, options: Any, kind: Kind) -> tlora.Subspaces:
    return tlora.task_subspaces(model, calibration, max_rank=max(options.ranks), kind=kind)


def held_out(task: tlora.Task, count: int, batch_size: int = 8) -> list[dict[str, Tensor]]:
    """Batches of validation samples, those of similar length together."""
    rows = sorted(task.validation.select(range(count)), key=lambda row: len(row["input_ids"]))
    return [task.collate(rows[i : i + batch_size]) for i in range(0, count, batch_size)]


def draw(measured: dict[str, Result], folder: Path) -> None:
    """One PNG a result."""
    import matplotlib

    matplotlib.use("Agg")
    import viz

    folder.mkdir(parents=True, exist_ok=True)
    for name, result in measured.items():
        viz.plot_alignment(result).figure.savefig(folder / f"{name}.png", dpi=150)


def show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.to_string(index=False, float_format='{:.4f}'.format)}", flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
