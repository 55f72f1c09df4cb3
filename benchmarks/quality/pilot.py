"""The pilot of the study: what freezing `A` costs where much must be learnt, and which modules want the rank.

    python -m benchmarks.quality.pilot             # what is not in the store yet; can be stopped at any moment
    python -m benchmarks.quality.pilot --only whitened head
    python -m benchmarks.quality.pilot --table     # the tables, from the store

Its rules and what they decide are in benchmarks/quality/STUDY.md. A run of `full` takes four and a half
minutes on one core; `--workers 2` uses two.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peft import PeftModel

import tlora
from tlora.comparison.methods import Job, Method
from tlora.recipes import RECIPES, Recipe

STORE = Path("benchmarks/results/pilot.jsonl")
VARIANCE = RECIPES["tlora"].attach
UNIFORM = {"adapt_ranks": False, "adapt_scales": False}
SEEDS = (0, 1)
TEXT = {"max_length": 48, "train": 8000, "validation": 100, "test": 300}
OTHER = {"reviews": {"max_length": 48, "test": 128, "train": 0}, "humaneval": {"max_length": 160, "test": 64}}
GENERAL = ("reviews", {"max_length": 48, "train": 2000})
REVIEWS = {"train": 6000, "validation": 500, "test": 2000}

Choose = Callable[[tlora.Sensitivity, np.random.Generator], list[str]]


def quarter(job: Job, *, choose: Choose) -> PeftModel:
    """LoRA on a quarter of the modules, of four times the rank."""
    sensitivity = _calibration(job).sensitivity
    chosen = choose(sensitivity, np.random.default_rng(job.seed))
    allocation = tlora.allocate(
        sensitivity, job.rank, exclude_modules=[n for n in sensitivity.names if n not in chosen], **UNIFORM
    )
    return tlora.attach(job.model, None, allocation, seed=job.seed, freeze_a=False)


def _calibration(job: Job, **options: Any) -> tlora.Calibration:
    return job.once(
        ("calibration", options), lambda: tlora.calibrate(job.model, job.batches(), progress=False, **options)
    )


def most_sensitive(sensitivity: tlora.Sensitivity, _: np.random.Generator) -> list[str]:
    """Those with the highest published scores."""
    scores = sensitivity.scores
    return sorted(scores, key=scores.__getitem__, reverse=True)[: _quarter(sensitivity)]


def at_random(sensitivity: tlora.Sensitivity, generator: np.random.Generator) -> list[str]:
    """Any."""
    return list(generator.choice(sensitivity.names, _quarter(sensitivity), replace=False))


def last(sensitivity: tlora.Sensitivity, _: np.random.Generator) -> list[str]:
    """Those of the last blocks."""
    return list(sensitivity.names)[-_quarter(sensitivity) :]


def _quarter(sensitivity: tlora.Sensitivity) -> int:
    return math.ceil(len(sensitivity.names) / 4)


def by_score(score: str) -> Recipe:
    """Ranks in proportion to a score, zero allowed, `A` trained from a random start."""
    return Recipe(
        f"ranks by {score}",
        task_subspaces=None,
        allocate={"score": score, "min_rank": 0, "adapt_scales": False, "budget": "parameters"},
        attach={"freeze_a": False},
    )


def frozen(kind: str) -> Recipe:
    """`A` frozen along the directions of a kind, at rows of one variance; ranks and scales alike."""
    gradient = {"gradient": True} if kind == "g" else {}
    return Recipe(
        f"frozen {kind}", calibrate=gradient, task_subspaces={"kind": kind}, allocate=UNIFORM, attach=VARIANCE
    )


def whitened(general_weight: float) -> Method:
    """`A` frozen along the whitened gradient, other text charged for with a weight."""
    adapt = partial(_whitened, general_weight=general_weight)
    return Method(f"frozen g_whitened, {general_weight:g}", adapt, {"general": GENERAL, "weight": general_weight})


def _whitened(job: Job, *, general_weight: float) -> PeftModel:
    calibration = _calibration(job, gradient=True)
    more: dict[str, Any] = {}
    if general_weight:
        general = job.once(("general",), lambda: tlora.calibrate(job.model, _batches_of_general(job), progress=False))
        more = {"general": general, "general_weight": general_weight}
    allocation = tlora.allocate(calibration.sensitivity, job.rank, **UNIFORM)
    subspaces = job.once(
        ("whitened", general_weight),
        lambda: tlora.task_subspaces(
            job.model, calibration, max_rank=allocation, kind="g_whitened", seed=job.seed, progress=False, **more
        ),
    )
    return tlora.attach(job.model, subspaces, allocation, rows="whitened", seed=job.seed)


def _batches_of_general(job: Job) -> Any:
    name, data = GENERAL
    return tlora.load_task(name, job.task.tokenizer, **data, seed=job.seed).calibration(job.samples)


@dataclass(frozen=True)
class Part:
    """What is run with the same task and training."""

    methods: tuple[str | Recipe | Method, ...]
    tasks: dict[str, dict[str, Any]]
    model: str
    rank: int
    rates: float | tuple[float, ...]
    arguments: dict[str, Any]


CIPHER: dict[str, Any] = {"steps": 100, "batch_size": 4, "samples": 32, "forgetting": OTHER}
PARTS = {
    "frozen": Part(
        ("full", "lora", *map(frozen, ("random", "wc"))),
        {"cipher": TEXT}, "smollm2-135m", 8, (2e-3, 4e-3, 8e-3), CIPHER,
    ),
    "whitened": Part(
        tuple(map(whitened, (10.0, 1.0, 0.0))), {"cipher": TEXT}, "smollm2-135m", 8, (1e-3, 2e-3, 4e-3), CIPHER,
    ),
    "gradient": Part((frozen("g"),), {"cipher": TEXT}, "smollm2-135m", 8, (1.6e-2, 3.2e-2, 6.4e-2), CIPHER),
    "tight": Part(
        (
            "lora",
            *map(by_score, ("mean", "sum", "per_parameter")),
            Method("most sensitive quarter", partial(quarter, choose=most_sensitive)),
            Method("random quarter", partial(quarter, choose=at_random)),
            Method("last quarter", partial(quarter, choose=last)),
        ),
        {"cipher": TEXT}, "smollm2-135m", 1, (4e-3, 8e-3, 1.6e-2), CIPHER,
    ),
    "head": Part(
        ("full", "lora", "tlora"),
        {"rotten_tomatoes": REVIEWS, "imdb": REVIEWS | {"max_length": 64}}, "minilm", 8, (5e-4, 1e-3, 2e-3, 4e-3),
        {"steps": 250, "batch_size": 16, "samples": 32},
    ),
}  # fmt: skip

SLOWER = ((frozen("wc"), 8e-3), ("lora", 1e-3))
"""Methods at rates below their best, at which they learn about as much as whitened directions do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*PARTS, "slower"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts that are run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing; print the tables of what is in the store")
    arguments = parser.parse_args()
    for name in [] if arguments.table else arguments.only:
        if name in PARTS:
            complete(PARTS[name], arguments.workers)
        else:
            for method, rate in SLOWER:
                part = replace(PARTS["frozen"], methods=(method,), rates=rate)
                complete(part, arguments.workers)
    print(table().to_string(index=False))
    print(slower().to_string(index=False))


def complete(part: Part, workers: int) -> None:
    """Do what is not in the store yet."""
    tlora.compare(
        part.methods, part.tasks, part.model, ranks=part.rank, learning_rates=part.rates, seeds=SEEDS, store=STORE,
        workers=workers, **part.arguments,
    )  # fmt: skip


def slower() -> pd.DataFrame:
    """Test loss and forgetting at rates that were not the best."""
    runs = tlora.Comparison.read(STORE).runs
    found = runs[(runs["split"] == "test") & ~runs["best_rate"]]
    return found.groupby(["task", "rank", "method", "learning_rate"], as_index=False)[["loss", "forgetting"]].mean()


def table() -> pd.DataFrame:
    """Each method at its rate: test loss with the interval of its difference from LoRA, and what it forgets."""
    summary = tlora.Comparison.read(STORE).summary("lora", metric="loss")
    shown = [
        "task", "rank", "method", "trainable_parameters", "learning_rate", "seeds", "value", "difference",
        "difference_low", "difference_high", "forgetting", "seconds_to_baseline", "seconds", "preparation_seconds",
    ]  # fmt: skip
    return summary.sort_values(["task", "rank", "value"], ascending=[True, True, False])[shown]


if __name__ == "__main__":
    main()
