"""Does it pay? The comparison of methods, run by run into a store that stays in the repository.

    python -m benchmarks.comparison                    # everything that is not in the store yet, cheapest first
    python -m benchmarks.comparison --only minilm      # the tasks of one model
    tlora compare --store benchmarks/comparison.jsonl --list

The recipe is chosen on the development tasks. The held-out tasks are of other families, and run once it is chosen:
`--held-out`. A run takes about three minutes on one core (MiniLM, 250 steps of 16) and can be stopped at any moment:
what is done is in the store. `--workers 2` uses two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import tlora
from tlora.methods import PRINCIPAL

STORE = "benchmarks/comparison.jsonl"


@dataclass(frozen=True)
class Bench:
    """A model with tasks that are trained on alike."""

    model: str
    tasks: dict[str, dict[str, Any]]
    arguments: dict[str, Any]
    held_out: bool = False
    ranks: tuple[int, ...] = (8,)


REVIEWS = {"train": 4000, "validation": 1000, "test": 2130}
PUZZLES = {"train": 240, "validation": 100, "test": 400, "metric": "loss"}
LONG, SHORT = {"steps": 250, "batch_size": 16}, {"steps": 60, "batch_size": 4}
BENCHES = (
    Bench("minilm", {"rotten_tomatoes": REVIEWS}, LONG),
    Bench("smollm2-135m", {"family_relationships": PUZZLES, "chain_sum": PUZZLES}, SHORT),
    Bench("minilm", {"imdb": REVIEWS | {"max_length": 128}}, LONG, held_out=True),
    Bench("smollm2-135m", {"syllogism": PUZZLES, "letter_counting": PUZZLES}, SHORT, held_out=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model whose tasks are run")
    parser.add_argument("--methods", nargs="+", default=PRINCIPAL)
    parser.add_argument("--held-out", action="store_true", help="the held-out tasks in place of those of development")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    for bench in BENCHES:
        if bench.held_out != arguments.held_out or arguments.only not in (None, bench.model):
            continue
        tlora.compare(
            arguments.methods,
            bench.tasks,
            bench.model,
            ranks=bench.ranks,
            store=STORE,
            workers=arguments.workers,
            **bench.arguments,
        )
    print(tlora.Comparison.read(STORE).to_frame().to_string(index=False))


if __name__ == "__main__":
    main()
