"""The pilot of the study: what freezing `A` costs if much must be learned, and which modules need the rank.

    python -m benchmarks.quality.pilot             # what is not in the store yet; can be stopped at any moment
    python -m benchmarks.quality.pilot --only gradient head
    python -m benchmarks.quality.pilot --table     # print the tables of the store, and write them to the page

Its rules and its decisions are in benchmarks/quality/STUDY.md. A run of `full` takes four and a half minutes on one
core; `--workers 2` uses two.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from peft import PeftModel

import tlora
from benchmarks.lab.compare import compare
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import Job, Method
from benchmarks.lab.plot import plot_forgetting, plot_rate_curves
from benchmarks.lab.store import Record, Store
from benchmarks.quality import comparison
from benchmarks.quality.pages import fill_blocks, markdown, publish, save_figure
from tlora.calibration.sensitivity import Sensitivity
from tlora.recipes import Recipe

STORE = Path("benchmarks/results/pilot.jsonl")
PAGE = Path("docs/results/pilot.md")
UNIFORM = {"adapt_ranks": False, "adapt_scales": False}
EARLIER = {
    recipe.name: recipe
    for recipe in (
        Recipe("score"),
        Recipe("score-trained", attach={"freeze_a": False}),
        Recipe("score-freeze-late", attach={"freeze_a": False}, train={"freeze_a_after": 0.2}),
    )
}
"""The recipes of the package when the runs were made: ranks and scales by score, `A` along ``wc``."""

SEEDS = (0, 1)
TEXT = {"max_length": 48, "train": 8000, "validation": 100, "test": 300}
OTHER = {"reviews": {"max_length": 48, "test": 128, "train": 0}, "humaneval": {"max_length": 160, "test": 64}}
REVIEWS = {"train": 6000, "validation": 500, "test": 2000}

Choose = Callable[[Sensitivity, np.random.Generator], list[str]]


def quarter(job: Job, *, choose: Choose) -> PeftModel:
    """LoRA on a quarter of the modules, at four times the rank."""
    sensitivity = job.calibration().sensitivity
    chosen = choose(sensitivity, np.random.default_rng(job.seed))
    allocation = tlora.allocate(
        sensitivity, job.rank, exclude_modules=[n for n in sensitivity.names if n not in chosen], **UNIFORM
    )
    return tlora.attach(job.model, None, allocation, seed=job.seed, freeze_a=False)


def most_sensitive(sensitivity: Sensitivity, _: np.random.Generator) -> list[str]:
    """The modules with the highest published scores."""
    scores = sensitivity.scores
    return sorted(scores, key=scores.__getitem__, reverse=True)[: _quarter(sensitivity)]


def at_random(sensitivity: Sensitivity, generator: np.random.Generator) -> list[str]:
    """Random modules."""
    return list(generator.choice(sensitivity.names, _quarter(sensitivity), replace=False))


def last(sensitivity: Sensitivity, _: np.random.Generator) -> list[str]:
    """The modules of the last blocks."""
    return list(sensitivity.names)[-_quarter(sensitivity) :]


def _quarter(sensitivity: Sensitivity) -> int:
    return math.ceil(len(sensitivity.names) / 4)


def score_recipe(score: str) -> Recipe:
    """Ranks in proportion to a score, zero allowed; `A` is trained from a random start."""
    return Recipe(
        f"ranks by {score}",
        task_subspaces=None,
        allocate={"score": score, "min_rank": 0, "adapt_scales": False, "budget": "parameters"},
        attach={"freeze_a": False},
    )


def frozen_recipe(kind: str) -> Recipe:
    """`A` frozen along the directions of a kind, with rows of equal variance; uniform ranks and scales."""
    return Recipe(f"frozen {kind}", task_subspaces={"kind": kind}, allocate=UNIFORM)


@dataclass(frozen=True)
class Part:
    """Methods that are run on the same tasks with the same training."""

    methods: tuple[str | Recipe | Method, ...]
    tasks: dict[str, dict[str, Any]]
    model: str
    rank: int
    rates: float | tuple[float, ...]
    arguments: dict[str, Any]


CIPHER: dict[str, Any] = {"steps": 100, "batch_size": 4, "samples": 32, "forgetting": OTHER}
PARTS = {
    "frozen": Part(
        ("full", "lora", *map(frozen_recipe, ("random", "wc"))),
        {"cipher": TEXT}, "smollm2-135m", 8, (2e-3, 4e-3, 8e-3), CIPHER,
    ),
    "gradient": Part((frozen_recipe("g"),), {"cipher": TEXT}, "smollm2-135m", 8, (1.6e-2, 3.2e-2, 6.4e-2), CIPHER),
    "tight": Part(
        (
            "lora",
            *map(score_recipe, ("mean", "sum", "per_parameter")),
            Method("most sensitive quarter", partial(quarter, choose=most_sensitive)),
            Method("random quarter", partial(quarter, choose=at_random)),
            Method("last quarter", partial(quarter, choose=last)),
        ),
        {"cipher": TEXT}, "smollm2-135m", 1, (4e-3, 8e-3, 1.6e-2), CIPHER,
    ),
    "head": Part(
        ("full", "lora", EARLIER["score"]),
        {"rotten_tomatoes": REVIEWS, "imdb": REVIEWS | {"max_length": 64}}, "minilm", 8, (5e-4, 1e-3, 2e-3, 4e-3),
        {"steps": 250, "batch_size": 16, "samples": 32},
    ),
}  # fmt: skip

SLOWER = ((frozen_recipe("wc"), 8e-3), ("lora", 1e-3))
"""Methods at rates below their best, at which they learn about as much as `g_whitened` did."""


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*PARTS, "slower"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts that are run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing; write the tables of the store")
    arguments = parser.parse_args()
    for name in [] if arguments.table else arguments.only:
        if name in PARTS:
            run_part(PARTS[name], arguments.workers)
        else:
            for method, rate in SLOWER:
                part = replace(PARTS["frozen"], methods=(method,), rates=rate)
                run_part(part, arguments.workers)
    if arguments.table:
        draw()
        publish(PAGE, "pilot", BLOCKS)


def run_part(part: Part, workers: int) -> None:
    """Do the runs that are not in the store yet."""
    compare(
        part.methods, part.tasks, part.model, ranks=part.rank, learning_rates=part.rates, seeds=SEEDS, store=STORE,
        workers=workers, **part.arguments,
    )  # fmt: skip


# --- On the pages ---

NAMES = {
    "full": "`full`",
    "lora": "LoRA",
    "frozen random": "frozen random `A`",
    "frozen wc": "frozen `A`, published directions (`wc`)",
    "frozen g": "frozen `A`, mean gradient (`g`)",
    "frozen g_whitened, 10": "frozen `A`, `g_whitened` against general text at 10",
    "frozen g_whitened, 1": "the same at 1 in place of 10",
    "frozen g_whitened, 0": "the same at 0",
    "ranks by mean": "ranks by the mean (published score), zero allowed",
    "ranks by sum": "ranks by the sum, zero allowed",
    "ranks by per_parameter": "ranks by the parameter, zero allowed",
    "most sensitive quarter": "rank 4 on the most sensitive quarter of the modules",
    "random quarter": "rank 4 on a random quarter",
    "last quarter": "rank 4 on the last quarter",
}
SHOWN = (
    ("full", 5e-4), ("lora", 4e-3), ("frozen random", 6.4e-2), ("frozen wc", 3.2e-2), ("frozen g_whitened, 10", 2e-3),
    ("lora", 1e-3), ("frozen wc", 8e-3),
)  # fmt: skip
"""Arms and rates of the short table."""


def test_records() -> dict[tuple[str, int, float], list[Record]]:
    """The test runs on `cipher` by method, rank and learning rate, in the order of their seeds."""
    records: dict[tuple[str, int, float], list[Record]] = {}
    for record in sorted(Store(STORE).read(), key=lambda record: record["key"]["seed"]):
        key = record["key"]
        if key["split"] == "test" and key["task"] == "cipher":
            records.setdefault((key["method"], key["rank"], key["learning_rate"]), []).append(record)
    return records


def short_table() -> str:
    """What the most important arms learned and forgot, means over the seeds."""
    records, lines = test_records(), []
    most = records["lora", 8, 4e-3][0]["trainable_parameters"]
    for method, rate in SHOWN:
        runs = records[method, 8, rate]
        trained = f"{100 * runs[0]['trainable_parameters'] / most:.0f} %"
        loss, forgotten = (np.mean(each) for each in zip(*map(_measured, runs), strict=True))
        lines.append([NAMES[method], f"{rate:g}", trained, f"{loss:.2f}", f"{forgotten:.2f}"])
    return markdown(["", "learning rate", "trained", "test loss, nats", "forgotten of other text, nats"], lines)


def _measured(run: Record) -> tuple[float, float]:
    return run["metrics"]["loss"], run["forgetting"]


def seed_table() -> str:
    """Every arm on `cipher`, seed by seed."""
    summary = all_runs().summary("lora", metric="loss")
    best = summary.set_index(["method", "rank", "learning_rate"])
    lines = []
    order = list(NAMES)
    for place, runs in sorted(
        test_records().items(), key=lambda item: (-item[0][1], order.index(item[0][0]), -item[0][2])
    ):
        method, rank, rate = place
        cells = [NAMES[method], f"rank {rank}", f"{rate:g}", f"{runs[0]['trainable_parameters'] / 1e6:.2f}M"]
        cells.append(", ".join(f"{run['metrics']['loss']:.2f}" for run in runs))
        cells += [", ".join(f"{run['forgetting_by_text'][name]:+.2f}" for run in runs) for name in OTHER]
        lines.append([*cells, comparison.format_difference(best.loc[place]) if place in best.index else ""])
    forgotten = (f"forgotten: {name}" for name in OTHER)
    return markdown(["arm", "budget", "rate", "trained", "test loss", *forgotten, "better than LoRA by"], lines)


def corrected_table() -> str:
    """The tasks with a head under the first protocol and under this one, if all runs are there."""
    methods, tables = ("full", "lora", "score"), []
    for store in (comparison.STORE, STORE):
        runs = Comparison.read(store, methods=methods, ranks=8)
        tables.append([runs.summary("lora", metric=m).set_index(["task", "method"]) for m in (None, "loss")])
    seeds = tables[1][0]["seeds"]
    lines = []
    for task in PARTS["head"].tasks:
        if not all(seeds.get((task, method)) == len(SEEDS) for method in methods):
            continue
        for method in methods:
            cells = [task, NAMES.get(method, f"`{method}`")]
            for values, losses in tables:
                row = values.loc[task, method]
                cells += [f"{row['learning_rate']:g}", f"{100 * row['value']:.1f} %"]
                cells.append(f"{-losses.loc[task, method]['value']:.3f}")
            lines.append([*cells, comparison.format_difference(losses.loc[task, method])])
    measured = ("rate", "accuracy", "loss")
    heads = [f"{when}: {what}" for when in ("at first", "now") for what in measured]
    return markdown(["task", "method", *heads, "better than LoRA by"], lines)


PICTURE = Path("docs/pilot_forgetting.png")
TIGHT = Path("docs/pilot_ranks.png")


def shown_runs() -> Comparison:
    """The runs that the picture shows: the arms of the short table."""
    return Comparison.read(STORE, tasks="cipher", ranks=8, methods={method for method, _ in SHOWN})


def all_runs() -> Comparison:
    """All runs on `cipher`."""
    return Comparison.read(STORE, tasks="cipher")


def draw() -> None:
    """The pictures of what was learned and forgotten, and of ranks."""
    runs, more = shown_runs(), all_runs()
    save_figure(plot_forgetting(runs), PICTURE, comparison.digest(runs))
    curves = plot_rate_curves(
        more.runs.query("rank == 1 and split == 'validation'"),
        title="No allocation is ahead of uniform ranks",
        detail="cipher, as many parameters as LoRA of rank 1; line: two seeds",
        names=NAMES | {"lora": "uniform ranks: LoRA, rank 1"},
    )
    save_figure(curves, TIGHT, comparison.digest(more))


BLOCKS = {"in short": short_table, "by seed": seed_table, "corrected": corrected_table}
"""Tables on the page, by their titles."""


def render(text: str) -> str:
    """The page with the tables of the store."""
    return fill_blocks(text, "pilot", BLOCKS)


if __name__ == "__main__":
    main()
