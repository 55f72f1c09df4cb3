"""Does it pay? The comparison of methods, run by run into a store that stays in the repository.

    python -m benchmarks.comparison                    # everything that is not in the store yet
    python -m benchmarks.comparison --only minilm      # the tasks of one model
    python -m benchmarks.comparison --table            # the README's table and picture, from the store
    tlora compare --store benchmarks/comparison.jsonl --list

The recipe is chosen on the development tasks. The held-out tasks are of other families, and run once it is chosen:
`--held-out`. A run takes about three minutes on one core (MiniLM, 250 steps of 16) and can be stopped at any moment:
what is done is in the store. `--workers 2` uses two cores.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import tlora
import viz
from tlora.methods import METHODS, PRINCIPAL
from tlora.paired import PLACE
from tlora.store import Store

STORE = Path("benchmarks/comparison.jsonl")
README = Path("README.md")
PICTURE = Path("docs/comparison.png")
BEGIN, END = "<!-- comparison: python -m benchmarks.comparison --table -->", "<!-- end of comparison -->"
SEEDS = (0, 1, 2)

Ranks = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Bench:
    """A model with tasks that are trained on alike, and the ranks of each method there."""

    model: str
    tasks: dict[str, dict[str, Any]]
    arguments: dict[str, Any]
    ranks: Ranks
    held_out: bool = False


REVIEWS = {"train": 4000, "validation": 1000, "test": 2130}
PUZZLES = {"train": 240, "validation": 100, "test": 400, "metric": "loss"}
LONG, SHORT = {"steps": 250, "batch_size": 16}, {"steps": 60, "batch_size": 4}
# Rank 16 of a method that trains B alone has the parameters of rank 8 of LoRA.
COMMON: Ranks = {
    "lora": (8,),
    "tlora": (8, 16),
    "tlora-trained": (8,),
    "tlora-paper": (8,),
    "lora-fa": (8,),
    "pissa": (8,),
}
SIZES: Ranks = COMMON | {"lora": (8, 4, 16), "tlora": (8, 16, 4, 32)}
PEERS: Ranks = {method: (8,) for method in METHODS if method not in PRINCIPAL}
BENCHES = (
    Bench("smollm2-135m", {"chain_sum": PUZZLES}, SHORT, COMMON),
    Bench("minilm", {"rotten_tomatoes": REVIEWS}, LONG, SIZES),
    Bench("smollm2-135m", {"family_relationships": PUZZLES}, SHORT, SIZES),
    Bench("smollm2-135m", {"letter_counting": PUZZLES, "syllogism": PUZZLES}, SHORT, COMMON, held_out=True),
    Bench("minilm", {"imdb": REVIEWS | {"max_length": 64}}, LONG, COMMON, held_out=True),
    Bench("smollm2-135m", {"chain_sum": PUZZLES}, SHORT, PEERS),
    Bench("minilm", {"rotten_tomatoes": REVIEWS}, LONG, PEERS),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model whose tasks are run")
    parser.add_argument("--tasks", nargs="+", help="tasks that are run")
    parser.add_argument("--methods", nargs="+", help="methods that are run")
    parser.add_argument("--ranks", nargs="+", type=int, help="ranks that are run")
    parser.add_argument("--held-out", action="store_true", help="the held-out tasks in place of those of development")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing; write the README's table and picture")
    arguments = parser.parse_args()
    if arguments.table:
        write()
        return
    for bench in BENCHES:
        if bench.held_out == arguments.held_out and arguments.only in (None, bench.model):
            complete(bench, arguments)
    print(tlora.Comparison.read(STORE).to_frame().to_string(index=False))


def complete(bench: Bench, arguments: argparse.Namespace) -> None:
    """Do what is not in the store yet."""
    tasks = {name: data for name, data in bench.tasks.items() if arguments.tasks is None or name in arguments.tasks}
    for method, planned in bench.ranks.items():
        ranks = [rank for rank in planned if arguments.ranks is None or rank in arguments.ranks]
        if tasks and ranks and (arguments.methods is None or method in arguments.methods):
            tlora.compare(
                method,
                tasks,
                bench.model,
                ranks=ranks,
                seeds=SEEDS,
                store=STORE,
                workers=arguments.workers,
                **bench.arguments,
            )


def whole(comparison: tlora.Comparison, **options: Any) -> pd.DataFrame:
    """The summary, less what has not been run with every seed."""
    summary = comparison.summary("lora", **options)
    return summary[summary["seeds"] == len(SEEDS)]


def table(comparison: tlora.Comparison) -> str:
    """The README's tables, in Markdown."""
    alike, sized = whole(comparison), whole(comparison, equal="parameters")
    lines = [
        "| task | method | rank | trained | rate | test | better than LoRA of the same rank by |",
        "|---" * 7 + "|",
    ]
    lines += [_line(row) for row in _ordered(alike)]
    sized = sized[(sized["baseline_rank"] != sized["rank"]) & sized["difference"].notna()]
    if len(sized):
        lines += [
            "",
            "| task | method | rank | trained | better than LoRA of as many parameters by |",
            "|---" * 5 + "|",
        ]
    for row in _ordered(sized):
        lines.append(f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {_difference(row)} |")
    return "\n".join(lines)


def _ordered(rows: pd.DataFrame) -> list[Any]:
    return list(rows.sort_values(["model", "task", "rank", "value"], ascending=[True, True, True, False]).itertuples())


def _line(row: Any) -> str:
    value = f"{-row.value:.3f}" if "loss" in row.metric else f"{100 * row.value:.1f} %"
    measured = f"{row.metric.removeprefix('negative_')} {value}"
    start = f"| {row.task} | {row.method} | {row.rank} | {_count(row)} | {row.learning_rate:g} | {measured} | "
    return f"{start}{'' if row.method == 'lora' else _difference(row)} |"


def _count(row: Any) -> str:
    return f"{row.trainable_parameters:,.0f}"


def _difference(row: Any) -> str:
    if pd.isna(row.difference):
        return ""
    factor, digits = (1, 3) if "loss" in row.metric else (100, 1)
    found = [f"{factor * value:+.{digits}f}" for value in (row.difference, row.difference_low, row.difference_high)]
    return f"{found[0]} ({found[1]} to {found[2]})"


def digest(comparison: tlora.Comparison) -> str:
    """What tells the picture of one store from that of another."""
    return hashlib.sha256(whole(comparison).to_csv(index=False, float_format="%.6g").encode()).hexdigest()[:16]


def finished(comparison: tlora.Comparison) -> tlora.Comparison:
    """What has been run with every seed, for the picture: what is not finished has not failed."""
    places = {tuple(place) for place in whole(comparison)[list(PLACE)].itertuples(index=False)}
    records = Store(STORE).read()
    return tlora.Comparison.of([r for r in records if tuple(r["key"][name] for name in PLACE) in places])


def write() -> None:
    """Put the table and the picture that the store makes in place."""
    comparison = tlora.Comparison.read(STORE)
    text = README.read_text()
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{table(comparison)}\n\n{END}{rest.split(END)[1]}")
    figure = viz.plot_comparison(finished(comparison), ranks=8)
    figure.savefig(PICTURE, dpi=110, metadata={"Description": digest(comparison)})


if __name__ == "__main__":
    main()
