"""Compare methods from the command line, or show what a store holds.

    python -m benchmarks.lab --model minilm --task rotten_tomatoes --test-samples 2000 --method lora --method captured
    python -m benchmarks.lab --store benchmarks/results/comparison.jsonl --rank 8 --baseline lora
    python -m benchmarks.lab --store benchmarks/results/comparison.jsonl --list

The same command resumes an interrupted comparison. Without --model nothing is run.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from benchmarks.lab.compare import RATES, compare
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import METHODS
from benchmarks.lab.plot import plot_differences, plot_forgetting, plot_rate_ranges

PRINCIPAL = ("lora", "pissa", "lora-fa", "tlora-paper", "captured", "captured-trained")
"""Methods that are compared by default."""
LISTED = (
    "method", "task", "model", "rank", "learning_rate", "seed", "split", "metric", "value", "loss", "forgetting",
    "trainable_parameters", "status", "best_rate",
)  # fmt: skip
SHOWN = (
    "method", "value", "low", "high", "difference", "difference_low", "difference_high", "learning_rate", "seeds",
    "trainable_parameters", "seconds",
)  # fmt: skip

VIEWS = {
    "differences": lambda comparison, shown: plot_differences(comparison, **shown),
    "rates": lambda comparison, _: plot_rate_ranges(comparison),
    "forgetting": lambda comparison, _: plot_forgetting(comparison),
}


def parse_arguments(line: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="base model, as for `tlora run`")
    add("--task", action="append", default=[], help="a task, as for `tlora run`; may be repeated")
    add("--method", action="append", default=[], help=f"may be repeated; one of {', '.join(METHODS)}")
    add("--rank", action="append", type=int, default=[], help="a nominal rank; may be repeated (default: 8)")
    for split in ("train", "validation", "test"):
        add(f"--{split}-samples", type=int, help=f"samples of the {split} split (default: all)")
    add("--learning-rate", "--lr", action="append", type=float, help="a rate of the grid; may be repeated")
    add("--seeds", type=int, default=3, help="final runs of each method, with the seeds 0, 1, ...")
    add("--search-seeds", type=int, default=2, help="seeds of the search for learning rates")
    add("--steps", type=int, default=250, help="optimizer steps of a run")
    add("--batch-size", type=int, default=16, help="samples a step")
    add("--samples", type=int, default=32, help="training samples that a method may calibrate on")
    add("--target-modules", action="append", help="modules to adapt; may be repeated (default: all linear layers)")
    add("--forgetting", action="append", default=[], help="a text whose loss is measured before and after")
    add("--device", help="cpu, cuda, cuda:1, ... (default: CUDA if available)")
    add("--dtype", default="float32", help="dtype of the base")
    add("--workers", type=int, default=1, help="processes side by side")
    add("--retry", action="store_true", help="repeat failed runs")
    add("--store", type=Path, default=Path("comparison.jsonl"), help="file that runs are read from and appended to")
    add("--list", action="store_true", help="print the runs as CSV")
    add("--picture", type=Path, help="draw into this file what --view names")
    add("--view", choices=VIEWS, default="differences", help="what to draw (default: %(default)s)")
    add("--baseline", help="method that the others are compared with (default: lora)")
    add("--baseline-rank", default="same", help="same, nearest (in parameters), or a rank")
    add("--loss", action="store_true", help="show the held-out loss in place of the task's metric")
    return parser.parse_args(line)


def run_or_read(options: argparse.Namespace) -> Comparison:
    """Run what the options ask for, or read what the store holds."""
    if options.model is None:
        return Comparison.read(options.store, tasks=options.task, methods=options.method, ranks=options.rank)
    sizes = {split: getattr(options, f"{split}_samples") for split in ("train", "validation", "test")}
    data = {split: size for split, size in sizes.items() if size is not None}
    return compare(
        options.method or PRINCIPAL,
        dict.fromkeys(options.task, data),
        options.model,
        ranks=options.rank or 8,
        learning_rates=options.learning_rate or RATES,
        seeds=range(options.seeds),
        search_seeds=range(1000, 1000 + options.search_seeds),
        progress=False,
        **{
            name: getattr(options, name)
            for name in (
                "steps", "batch_size", "samples", "target_modules", "forgetting", "store", "device", "dtype", "workers",
                "retry",
            )
        },
    )  # fmt: skip


def format_summary(summary: pd.DataFrame) -> str:
    """Tables of the summary, one a task, model and rank, the best method first."""
    summary = summary.sort_values("value", ascending=False, kind="stable", na_position="last")
    tables = [
        f"{task}, {model}, rank {rank}: {', '.join(filter(None, rows['metric'].unique())) or 'no result'}\n"
        + rows[list(SHOWN)].to_string(index=False, float_format="{:.4g}".format, na_rep="-")
        for (task, model, rank), rows in summary.groupby(["task", "model", "rank"], sort=False)
    ]
    return "\n\n".join(tables)


def main(line: Sequence[str] | None = None) -> None:
    options = parse_arguments(line)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("benchmarks.lab").setLevel(logging.INFO)
    comparison = run_or_read(options)
    rank = options.baseline_rank
    shown: dict[str, Any] = {
        "baseline": options.baseline,
        "baseline_rank": int(rank) if rank.isdecimal() else rank,
        "metric": "loss" if options.loss else None,
    }
    if options.list:
        print(comparison.runs[list(LISTED)].to_csv(index=False), end="")
    else:
        print(f"{comparison!r}\n\n{format_summary(comparison.summary(**shown))}")
    if options.picture:
        matplotlib.use("Agg")
        VIEWS[options.view](comparison, shown).savefig(options.picture)


if __name__ == "__main__":
    main()
