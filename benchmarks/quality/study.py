"""The study: what freezing `A` costs where much must be learnt, and what it keeps.

    python -m benchmarks.quality.study              # what is not in the store yet; can be stopped at any moment
    python -m benchmarks.quality.study --only main
    python -m benchmarks.quality.study --table      # the hypotheses and the tables, from the store

Its questions and rules are in benchmarks/quality/STUDY.md, which was written before its runs. A run takes two to three
minutes on one core; `--workers 2` uses two.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import tlora
from benchmarks.quality import pilot
from tlora.comparison.methods import Method, chosen
from tlora.recipes import Recipe

STORE = Path("benchmarks/results/study.jsonl")
DEVELOPMENT = "cipher"
HELD_OUT = ("second_cipher", "codebook")
SEEDS = range(6)
MARGIN = 0.05
"""Nats within which a loss counts as no worse."""
GUARD = 0.1
"""Nats by which a method may forget more than LoRA of as many parameters."""


@dataclass(frozen=True)
class Arm:
    """A method at a rank, and where the search for its rate on the development task begins."""

    method: str | Recipe | Method
    rank: int = 8
    begin: tuple[float, ...] = (2e-3, 4e-3, 8e-3)

    @property
    def name(self) -> str:
        """As in the store."""
        return chosen(self.method).name


ARMS = {
    "full": Arm("full"),
    "LoRA, rank 8": Arm("lora"),
    "LoRA, rank 4": Arm("lora", 4),
    "frozen random": Arm(pilot.frozen("random")),
    "frozen wc": Arm(pilot.frozen("wc")),
    "frozen g_whitened": Arm(pilot.whitened(10.0)),
    "trained from wc, rank 4": Arm("tlora-trained", 4),
    "frozen late": Arm("tlora-freeze-late"),
    "LoRA, rank 1": Arm("lora", 1),
    "ranks by sum, rank 1": Arm(pilot.by_score("sum"), 1),
}
NEIGHBOURS = {
    **{name: Arm(name, 4, (1e-3, 2e-3, 4e-3)) for name in ("pissa", "eva", "lora-ga", "qa-lora", "talklora", "tlora+")},
    **{name: Arm(name) for name in ("tlora", "tlora-paper")},
}
"""On one held-out task only, with half of the seeds."""
LADDER = {"frozen g_whitened": (1.0,), "LoRA, rank 8": (1.0, 0.25), "LoRA, rank 4": (1.0, 0.25)}
"""Arms of which forgetting is read at other parts of their best rate too."""
PARTS = ("rates", "main", "ladder", "neighbours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts that are run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing; print what the store says")
    arguments = parser.parse_args()
    for part in () if arguments.table else arguments.only:
        complete(part, arguments.workers)
    for title, table in tables().items():
        print(f"\n{title}\n{table.to_string(index=False, float_format='{:.4g}'.format)}")


def complete(part: str, workers: int) -> None:
    """Do what is not in the store yet."""
    if part == "rates":
        for arm in (ARMS | NEIGHBOURS).values():
            if not known_rate(pilot.STORE, arm):
                run(arm, (DEVELOPMENT,), arm.begin, pilot.SEEDS, workers)
    elif part == "main":
        for arm in ARMS.values():
            run(arm, HELD_OUT, best_rate(arm) / 2, SEEDS, workers)
    elif part == "ladder":
        for name, parts in LADDER.items():
            for share in parts:
                run(ARMS[name], HELD_OUT, best_rate(ARMS[name]) * share, SEEDS, workers)
        for task, arm, rate in missing_below():
            run(arm, (task,), rate, SEEDS, workers)
    else:
        for arm in NEIGHBOURS.values():
            run(arm, HELD_OUT[1:], best_rate(arm) / 2, SEEDS[:3], workers)


def run(arm: Arm, tasks: Iterable[str], rates: float | tuple[float, ...], seeds: Iterable[int], workers: int) -> None:
    """The runs of an arm that are not in the store yet."""
    part = pilot.PARTS["frozen"]
    tlora.compare(
        arm.method, {task: pilot.TEXT for task in tasks}, part.model, ranks=arm.rank, learning_rates=rates,
        seeds=seeds, store=STORE, workers=workers, **part.arguments,
    )  # fmt: skip


@cache
def known_rate(store: Path, arm: Arm) -> float | None:
    """The rate that was best on the development task, if it was searched for in a store."""
    try:
        found = tlora.Comparison.read(store, tasks=DEVELOPMENT, methods=arm.name, ranks=arm.rank).runs
    except (FileNotFoundError, ValueError):
        return None
    rates = found.loc[found["best_rate"], "learning_rate"]
    return float(rates.iloc[0]) if len(rates) else None


def best_rate(arm: Arm) -> float:
    """The rate that was best on the development task, in the pilot or in the part *rates*."""
    rate = known_rate(pilot.STORE, arm) or known_rate(STORE, arm)
    if rate is None:
        raise ValueError(f"no rate is known for {arm.name} at rank {arm.rank}: run the part rates first")
    return rate


def runs(arm: Arm, task: str) -> pd.DataFrame:
    """Loss and forgetting on the test split, one row a seed, one column a rate."""
    table = tlora.Comparison.read(STORE, tasks=task, methods=arm.name, ranks=arm.rank).runs
    table = table[(table["split"] == "test") & table["seed"].isin(SEEDS)]
    return table.pivot(index="seed", columns="learning_rate", values=["loss", "forgetting"])


def at_half(arm: Arm, task: str, column: str = "loss") -> pd.Series:
    """Loss or forgetting by seed at half of the best rate: the rate of the study."""
    return runs(arm, task)[column, best_rate(arm) / 2]


# --- What is forgotten at the same loss ---


def forgotten_at(losses: Mapping[float, float], forgotten: Mapping[float, float], loss: float) -> float:
    """What a method forgets where it has come to a loss, on the line between two of its rates.

    They are the first neighbours, from the lowest rate up, between which its loss passes that one: above them a
    method comes apart, and has the loss of a lower rate with another forgetting. NaN where there are none.
    """
    for low, high in pairwise(sorted(losses)):
        if losses[high] <= loss <= losses[low]:
            part = (losses[low] - loss) / (losses[low] - losses[high]) if losses[low] > losses[high] else 0.0
            return forgotten[low] + part * (forgotten[high] - forgotten[low])
    return np.nan


def kept(name: str, task: str) -> pd.Series:
    """By how much more a LoRA forgets than whitened directions where it has their loss, by seed."""
    arm, lora = ARMS["frozen g_whitened"], runs(ARMS[name], task)
    own = runs(arm, task).xs(best_rate(arm), axis=1, level="learning_rate")
    return pd.Series(
        {
            seed: forgotten_at(lora.loc[seed, "loss"].dropna(), lora.loc[seed, "forgetting"], row["loss"])
            - row["forgetting"]
            for seed, row in own.iterrows()
        }
    )


def missing_below() -> Iterable[tuple[str, Arm, float]]:
    """Rates half of the lowest, until a LoRA has at its lowest rate learnt less than whitened directions have."""
    for task in HELD_OUT:
        for name in LADDER:
            while name.startswith("LoRA") and kept(name, task).isna().any():
                lowest = min(runs(ARMS[name], task)["loss"].columns)
                if lowest < best_rate(ARMS[name]) / 64:
                    break
                yield task, ARMS[name], lowest / 2


# --- The hypotheses ---


def p_value(differences: pd.Series, margin: float = 0.0) -> float:
    """One-sided, of a mean above `-margin`, over seeds: Student's t."""
    return float(stats.ttest_1samp(differences + margin, 0, alternative="greater").pvalue)


def hypotheses() -> pd.DataFrame:
    """Each difference with its 95 % interval over seeds; a hypothesis has the largest p of its rows."""
    rows = []
    for task in HELD_OUT:
        found = {
            ("H1", "LoRA, rank 8, forgets more at the same loss", 0.0): kept("LoRA, rank 8", task),
            ("H1", "LoRA, rank 4, forgets more at the same loss", 0.0): kept("LoRA, rank 4", task),
        }
        for label, name, other in (
            ("H2", "frozen wc", "LoRA, rank 4"), ("H3", "ranks by sum, rank 1", "LoRA, rank 1"),
            ("H4", "frozen late", "LoRA, rank 8"),
        ):  # fmt: skip
            margin = 0.0 if label == "H3" else MARGIN
            found[label, f"{name} loses less than {other}", margin] = at_half(ARMS[other], task) - at_half(
                ARMS[name], task
            )
        for (label, what, margin), each in found.items():
            low, high = stats.t.interval(0.95, len(each) - 1, each.mean(), stats.sem(each))
            rows.append(
                {"hypothesis": label, "task": task, "what": what, "margin": margin, "mean": each.mean(), "low": low,
                 "high": high, "seeds": len(each), "p": p_value(each, margin)}
            )  # fmt: skip
    table = pd.DataFrame(rows).sort_values(["hypothesis", "task"], kind="stable")
    holm = holm_adjusted(table.groupby("hypothesis")["p"].max())
    return table.assign(holm=table["hypothesis"].map(holm))


def holm_adjusted(p: pd.Series) -> pd.Series:
    """Holm's adjusted p values."""
    ordered = p.sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1)[p.index]


def tables() -> dict[str, pd.DataFrame]:
    """What the store says, by title."""
    found = {}
    columns = ["method", "rank", "learning_rate", "trainable_parameters", "loss", "forgetting"]
    for task in HELD_OUT:
        test = tlora.Comparison.read(STORE, tasks=task).runs.query("split == 'test'")
        rows = test.groupby(["method", "rank", "learning_rate"])
        table = rows[columns[3:]].mean().assign(worst=rows["loss"].max(), seeds=rows.size())
        found[f"{task}: means over seeds, and the worst loss"] = table.reset_index().sort_values("loss")
    return found | {"The hypotheses": hypotheses()}


if __name__ == "__main__":
    main()
