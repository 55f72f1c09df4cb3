"""The best learning rate of each method on each task, from all searches that the stores hold.

python -m benchmarks.quality.best_rates --table     # the table and the picture of docs/howto/learning_rate.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.lr_search import flat_range
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, directions, pilot, rates, study
from benchmarks.quality.pages import digest_text, markdown, publish, save_figure
from viz import style

PAGE = Path("docs/howto/learning_rate.md")
PICTURE = Path("docs/best_rates.png")

STORES = {
    "comparison": comparison.STORE,
    "pilot": pilot.STORE,
    "study": study.STORE,
    "directions": directions.STORE,
    "rates": rates.STORE,
}
SEARCHED = ("comparison", "pilot", "study", "directions")
"""Studies with searches on validation rows; the others ran each arm at the same rates."""
NEAR = 0.01
"""Part of the lowest loss by which that of another rate may be higher and count as near it."""
TRAINING = ("model", "steps", "batch_size")
ARM = ["study", "task", "method", "rank"]
UNIFORM = ("frozen random", "frozen wc", "frozen g", "frozen fisher", "random and frozen with neither")
TRAINED = {
    "LoRA": ("lora",),
    "`captured`, the default": ("captured",),
    "`B` alone, uniform ranks and scales": (*UNIFORM, "score with neither"),
    "`B` alone along `wc`, ranks and scales by sensitivity": ("score",),
    "LoRA-FA of PEFT, with its optimizer": ("lora-fa",),
    "`A` and `B`, from the directions of `wc`": ("score-trained",),
    "the same, `A` for the first fifth of the steps": ("score-freeze-late",),
    "`tlora-paper`: `B` alone, rows of `A` of length one": ("tlora-paper",),
    "full fine-tuning": ("full",),
}
"""What is trained, and the methods of the stores that train it."""


@cache
def best_rates() -> pd.DataFrame:
    """Return one row per study, task, method and rank.

    Returns
    -------
    pandas.DataFrame
        ``study``, ``task``, ``method`` and ``rank``; ``best``, the rate with the lowest mean loss on validation rows;
        ``lowest`` and ``highest``, the ends of the range around it in which losses are within `NEAR` of the lowest;
        ``edge``, the ends of the grid that this range reaches; ``model``, ``steps`` and ``batch_size``.
    """
    searched = [Comparison.read(STORES[name]).flatness(NEAR).assign(study=name) for name in SEARCHED]
    table = pd.concat([*searched, pd.DataFrame([*directions_rates(), *replica_rates()])]).dropna(subset="best")
    trained = [newest_keys()[pair] for pair in zip(table["study"], table["task"], strict=True)]
    table = table.assign(**{part: [key[part] for key in trained] for part in TRAINING})
    return table[[*ARM, "best", "lowest", "highest", "edge", *TRAINING]].reset_index(drop=True)


@cache
def newest_keys() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the key of the newest run on each task, by study and task: its model, data and training."""
    records = ((name, record) for name, path in STORES.items() if path.exists() for record in Store(path).read())
    return {(name, record["key"]["task"]): record["key"] for name, record in records}


def directions_rates() -> Iterator[dict[str, Any]]:
    """Yield the best rates of the study of directions, whose arms all ran at the same four multiples of R."""
    for task, data in directions.TASKS.items():
        for name, arm in directions.ARMS.items():
            losses = directions.losses_by_share(task, name)
            if losses is not None:
                rates = np.array(losses.columns) * directions.known_rate(data)
                near = flat_range(dict(zip(rates, -losses.mean(), strict=True)), NEAR)
                yield {"study": "directions", "task": task, "method": arm.name, "rank": arm.rank, **near}


def replica_rates() -> Iterator[dict[str, Any]]:
    """Yield the best rates of the replica of PEFT's board on all layers, once the grid of an arm is complete."""
    runs = rates.test_runs()
    for task in rates.TASKS:
        for arm in rates.ARMS:
            if rates.best_share(runs, task, "all", arm) is not None:
                mine = rates.runs_of(runs, task, "all", arm)
                losses = mine[mine["seed"].isin(rates.GRID_SEEDS)].groupby("share")["validation"].mean()
                near = flat_range(dict(zip(losses.index * rates.R, -losses, strict=True)), NEAR)
                yield {"study": "rates", "task": task, "method": arm, "rank": rates.RANK, **near}


def recipe_rates() -> pd.DataFrame:
    """Return the best rates of the methods in `TRAINED`, in its order and by rank, with what is ``trained``."""
    trained = {method: words for words, methods in TRAINED.items() for method in methods}
    table = best_rates()
    table = table.assign(trained=table["method"].map(trained)).dropna(subset="trained")
    place = {words: number for number, words in enumerate(TRAINED)}
    return table.sort_values(["trained", "rank", "best"], key=lambda c: c.map(place) if c.name == "trained" else c)


def rank_text(trained: str, rank: int) -> str:
    """Return the rank of what is trained; full fine-tuning has none."""
    return "" if trained == "full fine-tuning" else f"{rank}"


def middle_rate(rows: pd.DataFrame) -> float:
    """Return the median of best rates; of two in the middle the lower, since it was the best of a search."""
    return float(np.sort(rows["best"])[(len(rows) - 1) // 2])


# --- On the page ---


def rates_table() -> str:
    """What is trained at which rank, and its best rates on the tasks: the median, the lowest and the highest."""
    lines = []
    for (trained, rank), rows in recipe_rates().groupby(["trained", "rank"], sort=False):
        low, high = rows["best"].min(), rows["best"].max()
        ends = f"{low:g} to {high:g}" if low < high else ""
        lines.append([trained, rank_text(trained, rank), f"{middle_rate(rows):g}", ends, f"{len(rows)}"])
    return markdown(["what is trained", "rank", "start from", "best rates from ... to", "searches"], lines)


TABLES = {"starts": rates_table}


@style.styled
def draw(table: pd.DataFrame) -> Figure:
    """A row for what is trained at which rank, a point for each best rate, and a line for rates that are near it."""
    rows = list(table.groupby(["trained", "rank"], sort=False))
    figure, ax = plt.subplots(figsize=(9, 0.35 * len(rows) + 1.9), layout="constrained")
    sizes = sorted(table["batch_size"].unique())
    looks = dict(zip(sizes, zip(style.colors(len(sizes)), style.markers(len(sizes)), strict=True), strict=True))
    for place, (_, searches) in enumerate(rows):
        heights = place + np.linspace(-0.32, 0.32, len(searches) + 2)[1:-1]
        for height, search in zip(heights, searches.itertuples(), strict=True):
            color, marker = looks[search.batch_size]
            ax.plot([search.lowest, search.highest], [height, height], color=color, linewidth=1.2, alpha=0.5)
            ax.plot(search.best, height, marker, color=color, markersize=4)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate")
    names = [", rank ".join(filter(None, (trained, rank_text(trained, rank)))) for (trained, rank), _ in rows]
    ax.set_yticks(range(len(rows)), [name.replace("`", "") for name in names])
    ax.invert_yaxis()
    style.guide_lines(ax)
    handles = [
        Line2D([], [], color=color, marker=marker, label=f"batches of {size}")
        for size, (color, marker) in looks.items()
    ]
    ax.legend(handles=handles, loc="upper left")
    medians = [f"{middle_rate(searches):g} at rank {rank}" for (trained, rank), searches in rows if trained == "LoRA"]
    style.headline(
        ax,
        f"LoRA's best rate falls as the rank grows: {', '.join(medians)}",
        "Points: best rates of tasks; lines: losses within 1 % of the lowest",
    )
    return figure


def digest() -> str:
    """Identifies the numbers in the picture."""
    return digest_text(recipe_rates().to_csv(index=False, float_format="%.6g"))


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the table and the picture to their places")
    options = parser.parse_args()
    if options.table:
        save_figure(draw(recipe_rates()), PICTURE, digest())
    publish(PAGE if options.table else None, "best_rates", TABLES)


if __name__ == "__main__":
    main()
