"""How much of what a frozen `A` loses on PEFT's board is the learning rate, how much the directions.

    python -m benchmarks.quality.rates                  # what is not in the store; can be stopped at any moment
    python -m benchmarks.quality.rates --only grid
    python -m benchmarks.quality.rates --table          # write the tables and the picture of the store to their places

The arms, the rates, the hypotheses and the analysis are on the page, docs/results/rates.md, which was written before
the first run. Runs are kept in ``benchmarks/results/rates.jsonl``; those that are there are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.lab.compare import compare
from benchmarks.lab.store import Store
from benchmarks.quality.pages import digest_text, markdown, publish, save_figure
from benchmarks.quality.study import holm_adjusted, run_all
from viz import style

STORE = Path("benchmarks/results/rates.jsonl")
PAGE = Path("docs/results/rates.md")
PICTURE = Path("docs/rates.png")
MODEL, RANK = "smollm2-135m", 8
TRAINING = {"steps": 30, "batch_size": 4, "samples": 32}
TASKS: dict[str, dict[str, Any]] = {
    "spell_backward": {"train": 800, "validation": 32, "test": 64},
    "notebooks/data/smart_home": {"validation": 32, "test": 64},
}
TARGETS = {"q, v": ["q_proj", "v_proj"], "all": None}
LORA, RANDOM, CAPTURED, PAPER = ARMS = ("lora", "lora-fa", "captured", "tlora-paper")
R = 4e-3
"""LoRA's best rate on the smart-home commands, from the study of directions."""
SHARES = (1, 2, 4, 8)
BEYOND = {SHARES[0]: 0.5, SHARES[-1]: 16}
"""What was tried after the grid, where the best of its rates was the lowest or the highest."""
GRID_SEEDS, SEEDS = (0, 1), (0, 1, 2, 3, 4, 5)
MARGIN = 0.05
"""Part of what LoRA learns by which a loss may be higher and count as not behind."""
PARTS = ("grid", "more", "beyond")


@dataclass(frozen=True)
class ArmRuns:
    """Runs of one arm on one task with some targets, at a multiple of R."""

    task: str
    targets: str
    arm: str
    share: float
    seeds: tuple[int, ...]

    def run(self) -> None:
        """Do the runs that are not in the store yet."""
        compare(
            self.arm, {self.task: TASKS[self.task]}, MODEL, ranks=RANK, learning_rates=self.share * R,
            seeds=self.seeds, target_modules=TARGETS[self.targets], store=STORE, progress=False, **TRAINING,
        )  # fmt: skip


def plan(part: str) -> Iterator[ArmRuns]:
    """Return the runs of a part; those after the grid are planned when it is done.

    "beyond" was added after the others: a rate outside the grid for arms whose best is at an end of it.
    """
    cells = product(TASKS, TARGETS, ARMS)
    if part == "grid":
        yield from (ArmRuns(*cell, share, GRID_SEEDS) for cell in cells for share in SHARES)
        return
    runs = test_runs()
    for task, targets, arm in cells:
        best = best_share(runs, task, targets, arm)
        if best is None:
            raise ValueError(f"the grid of {arm} on {task}, {targets}, is not done: run the part grid first")
        if part == "more":
            yield from (ArmRuns(task, targets, arm, share, SEEDS) for share in sorted({1, best}))
        elif best in BEYOND:
            yield ArmRuns(task, targets, arm, BEYOND[best], GRID_SEEDS)


def test_runs() -> pd.DataFrame:
    """Return one row per run: its cell, seed, and losses in nats, of test and validation rows and of the base.

    The losses of a run that diverged or failed are infinite.
    """
    columns = ["task", "targets", "arm", "share", "seed", "loss", "validation", "base"]
    rows = []
    for record in Store(STORE).read() if STORE.exists() else []:
        key, is_done = record["key"], record["status"] == "done"
        targets = next(name for name, modules in TARGETS.items() if key.get("target_modules") == modules)
        losses = (record["metrics"]["loss"], record["validation_loss"]) if is_done else (np.inf, np.inf)
        cell = (key["task"], targets, key["method"], round(key["learning_rate"] / R, 1), key["seed"])
        rows.append((*cell, *losses, record.get("base_loss", np.nan)))
    return pd.DataFrame(rows, columns=columns)


def runs_of(runs: pd.DataFrame, task: str, targets: str, arm: str) -> pd.DataFrame:
    """Return the runs of a cell."""
    return runs[(runs["task"] == task) & (runs["targets"] == targets) & (runs["arm"] == arm)]


def best_share(runs: pd.DataFrame, task: str, targets: str, arm: str) -> float | None:
    """Return the multiple of R with the lowest mean validation loss of the grid's seeds; None before all have run."""
    mine = runs_of(runs, task, targets, arm)
    grid = mine[mine["seed"].isin(GRID_SEEDS) & mine["share"].isin(SHARES)]
    losses = grid.pivot(index="share", columns="seed", values="validation")
    return None if losses.shape != (len(SHARES), len(GRID_SEEDS)) else losses.mean(axis=1).idxmin()


def losses_at(runs: pd.DataFrame, task: str, targets: str, arm: str, share: float | None) -> pd.Series:
    """Return the test losses by seed at a multiple of R, or at the arm's own best (None); NaN where there is no run."""
    share = best_share(runs, task, targets, arm) if share is None else share
    mine = runs_of(runs, task, targets, arm)
    return mine[mine["share"] == share].set_index("seed")["loss"].reindex(SEEDS).astype(float)


def gaps(runs: pd.DataFrame, task: str, targets: str) -> dict[str, pd.Series]:
    """Return the gap of LoRA-FA from LoRA at R and its three parts, which add up to it, by seed, in nats."""
    at_r = {arm: losses_at(runs, task, targets, arm, 1) for arm in ARMS}
    best = {arm: losses_at(runs, task, targets, arm, None) for arm in ARMS}
    gap = at_r[RANDOM] - at_r[LORA]
    return {
        "gap at R": gap,
        "rate": gap - (best[RANDOM] - best[LORA]),
        "directions": best[RANDOM] - best[CAPTURED],
        "remains": best[CAPTURED] - best[LORA],
    }


def interval(values: pd.Series) -> str:
    """Return a mean with its 95 % t interval, or how many of the seeds are there."""
    finite = values[np.isfinite(values)]
    if len(finite) < len(SEEDS):
        return f"{len(finite)} of {len(SEEDS)} seeds"
    low, high = stats.t.interval(0.95, len(finite) - 1, finite.mean(), stats.sem(finite))
    return f"{finite.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def hypotheses() -> pd.DataFrame:
    """Return each claim with its one-sided t test over the seeds; p is adjusted by Holm within its hypothesis.

    A claim says that ``value``, in nats by seed, is below zero.
    """
    runs, rows = test_runs(), []
    for task, targets in product(TASKS, TARGETS):
        at_r = {arm: losses_at(runs, task, targets, arm, 1) for arm in ARMS}
        parts = gaps(runs, task, targets)
        lora = runs_of(runs, task, targets, LORA)
        learned = (lora["base"] - lora["loss"])[lora["share"] == 1].mean()
        values = {
            "H1": parts["gap at R"] / 2 - parts["rate"],
            "H2": at_r[CAPTURED] - at_r[RANDOM],
            "H3": at_r[CAPTURED] - at_r[LORA] - MARGIN * learned,
        }
        for name, value in values.items():
            can_hold = np.isfinite(value).all() and (name != "H1" or parts["gap at R"].mean() > 0)
            p = stats.ttest_1samp(value, 0, alternative="less").pvalue if can_hold else 1.0
            rows.append({"hypothesis": name, "task": task, "targets": targets, "value": value, "p": p})
    table = pd.DataFrame(rows).sort_values("hypothesis", kind="stable")
    return table.assign(holm=table.groupby("hypothesis", group_keys=False)["p"].apply(holm_adjusted))


def missing_runs() -> str:
    """Say how many runs of the grid are there."""
    runs = test_runs()
    there = (runs["seed"].isin(GRID_SEEDS) & runs["share"].isin(SHARES)).sum()
    return f"{there} of the {len(list(plan('grid'))) * len(GRID_SEEDS)} runs of the grid are there, {len(runs)} in all."


def gap_table() -> str:
    """The gap of LoRA-FA from LoRA at R, and what it consists of."""
    runs = test_runs()
    lines = [
        [task, targets, *map(interval, gaps(runs, task, targets).values())] for task, targets in product(TASKS, TARGETS)
    ]
    return markdown(["task", "targets", "gap at R", "rate", "directions", "remains"], lines)


def hypotheses_table() -> str:
    """The hypotheses and their results."""
    lines = [
        [row.hypothesis, row.task, row.targets, interval(row.value), f"{row.holm:.2g}",
         "holds" if row.holm < 0.05 else "not shown"]
        for row in hypotheses().itertuples()
    ]  # fmt: skip
    return markdown(["", "task", "targets", "value, nats", "p (Holm)", ""], lines)


def means() -> pd.DataFrame:
    """Return one row per arm and rate of each task and targets: mean losses over the grid's seeds, NaN if one diverged.

    ``best`` is whether the rate is the arm's best of the grid.
    """
    runs = test_runs()
    cell = ["task", "targets", "arm", "share"]
    table = runs[runs["seed"].isin(GRID_SEEDS)].groupby(cell)[["validation", "loss"]].mean()
    cells = pd.MultiIndex.from_product([TASKS, TARGETS, ARMS, sorted((*SHARES, *BEYOND.values()))], names=cell)
    table = table.reindex(cells).dropna().reset_index()
    is_best = [row.share == best_share(runs, row.task, row.targets, row.arm) for row in table.itertuples()]
    return table.assign(best=is_best).replace(np.inf, np.nan)


def means_table() -> str:
    """Losses of each arm at each rate, on validation and test rows."""
    lines = []
    for row in means().itertuples():
        rate = f"{row.share * R:g} ({row.share:g} R)" + (", best of the grid" if row.best else "")
        losses = [f"{loss:.3f}" if np.isfinite(loss) else "diverged" for loss in (row.validation, row.loss)]
        lines.append([row.task, row.targets, row.arm, rate, *losses])
    heads = ["task", "targets", "arm", "rate", "validation loss", "test loss"]
    return markdown(heads, lines) if lines else "Nothing is measured yet."


@style.styled
def draw(table: pd.DataFrame) -> Figure:
    """A panel for each task and targets: the mean test loss by learning rate, a line for each arm."""
    cells = list(product(TASKS, TARGETS))
    figure, panels = plt.subplots(1, len(cells), figsize=(3.1 * len(cells), 3.9), layout="constrained")
    runs, shares = test_runs(), sorted(table["share"].unique())
    for ax, (task, targets) in zip(panels, cells, strict=True):
        for arm, color, marker in zip(ARMS, style.colors(len(ARMS)), style.markers(len(ARMS)), strict=True):
            line = runs_of(table, task, targets, arm)
            ax.plot(line["share"], line["loss"], color=color, marker=marker, linewidth=2, label=arm)
        ax.set_xscale("log", base=2)
        ax.set_xticks(shares, [f"{share:g}" for share in shares])
        ax.set_xlabel(f"learning rate / {R:g}")
        style.logarithmic(ax, "y")
        style.guide_lines(ax)
        parts = {name: values.mean() for name, values in gaps(runs, task, targets).items()}
        behind = parts["gap at R"] - parts["rate"]
        style.headline(
            ax,
            f"{RANDOM} {parts['gap at R']:+.2f} at 1, {behind:+.2f} at best",
            f"{Path(task).name}, {'all layers' if TARGETS[targets] is None else targets}",
        )
    panels[0].set_ylabel("test loss, nats")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))
    return figure


def digest() -> str:
    """Identifies the numbers in the picture."""
    return digest_text(means().to_csv(index=False, float_format="%.6g"))


TABLES = {"missing": missing_runs, "gaps": gap_table, "hypotheses": hypotheses_table, "means": means_table}


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--table", action="store_true", help="run nothing; make the tables and the picture of the store"
    )
    options = parser.parse_args()
    if not options.table:
        for part in options.only:
            run_all(plan(part), options.workers, torch.set_num_threads)
    save_figure(draw(means()), PICTURE, digest())
    publish(PAGE, "rates", TABLES)


if __name__ == "__main__":
    main()
