"""Pictures of a Comparison: differences from a baseline, learning rates, and what was learned and forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.summary import BaselineRank
from viz import style

MARKERS = "osD^vP*<>ph8dH"
FULL = "full"
"""Full fine-tuning, which has no rank."""


@style.styled
def plot_differences(
    comparison: Comparison,
    *,
    baseline: str | None = None,
    baseline_rank: BaselineRank = "same",
    metric: str | None = None,
) -> Figure:
    """Draw how far methods are from the baseline: a line for each method and rank, a point for each task.

    Parameters
    ----------
    comparison : Comparison
        The runs.
    baseline, baseline_rank, metric
        As for `Comparison.summary`.

    Returns
    -------
    matplotlib.figure.Figure
        Differences in half-widths of their 95 % intervals: points outside the gray band differ from the baseline.

    Raises
    ------
    ValueError
        If no method has two runs in common with the baseline.
    """
    summary = comparison.summary(baseline, baseline_rank=baseline_rank, metric=metric)
    rows, name = summary.dropna(subset=["difference_low"]), baseline or "lora"
    if not len(rows):
        raise ValueError("nothing to draw: no method has two runs in common with the baseline")
    x = 2 * rows["difference"] / (rows["difference_high"] - rows["difference_low"])
    figure, ax = _draw_points(rows.assign(x=x, hollow=False))
    ax.axvspan(-1, 1, color="0.88", linewidth=0, zorder=0)
    ax.axvline(0, color="0.35", linestyle="--", linewidth=1, zorder=1)
    ax.set_xlabel(f"difference from {name}, in half-widths of its 95 % interval; right is better")
    ahead, behind = int((x > 1).sum()), int((x < -1).sum())
    finding = f"{len(rows) - ahead - behind} of {len(rows)} do not differ from {name}; {ahead} ahead, {behind} behind"
    style.headline(ax, finding, "test split; gray: within the 95 % interval")
    return figure


@style.styled
def plot_rate_ranges(comparison: Comparison) -> Figure:
    """Draw by which factor learning rates may differ before the validation loss is 1 % higher than at best.

    Parameters
    ----------
    comparison : Comparison
        The runs.

    Returns
    -------
    matplotlib.figure.Figure
        A line for each method and rank, a point for each task; hollow if the range reaches the end of the search.
    """
    flat = comparison.flatness()
    rows = flat.assign(x=2.0 ** flat["doublings"], hollow=flat["edge"] != "")
    figure, ax = _draw_points(rows, multiply=True)
    ax.set_xscale("log", base=2)
    doublings = int(np.log2(max(rows["x"].max(), 1)))
    ax.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(doublings + 1)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    ax.set_xlabel("highest over lowest of the learning rates within 1 % of the best loss")
    single = int((rows["x"] == 1).sum())
    finding = f"{single} of {len(rows)} have one best learning rate; a factor of 2 costs over 1 %"
    style.headline(ax, finding, "validation split; hollow: at the edge of the search, perhaps more")
    return figure


@style.styled
def plot_rate_curves(
    runs: pd.DataFrame, *, title: str = "Learning rates", detail: str = "", names: Mapping[str, str] | None = None
) -> Figure:
    """Draw the loss by learning rate: a line for each method and rank, from the lowest to the highest of its seeds.

    Parameters
    ----------
    runs : pandas.DataFrame
        Runs of one task and one split, such as ``comparison.runs.query("split == 'validation'")``.
    title, detail : str
        The finding, and the gray line below it.
    names : mapping of str, optional
        Labels of methods, in the order of the legend; by default their names.

    Returns
    -------
    matplotlib.figure.Figure
    """
    keys = list(dict.fromkeys(zip(runs["method"], runs["rank"], strict=True)))
    if names:
        keys.sort(key=lambda key: list(names).index(key[0]))
    labels = _labels([(names[method] if names else method, rank) for method, rank in keys])
    figure, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    looks = zip(keys, labels, style.colors(len(keys)), islice(cycle(MARKERS), len(keys)), strict=True)
    for n, ((method, rank), label, color, marker) in enumerate(looks):
        mine = runs[(runs["method"] == method) & (runs["rank"] == rank)]
        losses = mine.groupby("learning_rate")["loss"]
        rates = losses.mean().index * 1.02 ** (n - (len(keys) - 1) / 2)  # side by side
        ax.vlines(rates, losses.min(), losses.max(), color=color, linewidth=0.8)
        ax.plot(rates, losses.mean(), marker=marker, color=color, linewidth=1.2, label=label)
    rates = sorted(set(runs["learning_rate"]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.set_xlabel("learning rate")
    ax.set_ylabel(f"{runs['split'].iloc[0]} loss, nats")
    style.guide_lines(ax)
    style.headline(ax, title, detail)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@style.styled
def plot_forgetting(comparison: Comparison) -> Figure:
    """Draw what was learned and what was forgotten: a panel for each model and task, a line for each method and rank.

    Parameters
    ----------
    comparison : Comparison
        Runs with ``forgetting=``.

    Returns
    -------
    matplotlib.figure.Figure
        Test loss by the increase of the loss on other texts, a point for each learning rate: means over seeds, with
        the range of the seeds in thin lines.

    Raises
    ------
    ValueError
        If no run on the test split has measured other texts.
    """
    runs = comparison.runs
    runs = runs[(runs["split"] == "test") & runs["loss"].notna() & runs["forgetting"].notna()]
    if not len(runs):
        raise ValueError("nothing to draw: no test run has measured other texts; use compare(..., forgetting=)")
    keys = list(dict.fromkeys(zip(runs["method"], runs["rank"], strict=True)))
    looks = list(zip(keys, _labels(keys), style.colors(len(keys)), style.dashes(len(keys)), cycle(MARKERS)))
    panels = list(runs.groupby(["model", "task"], sort=False))
    size = (max(6.6, 4.4 * len(panels)), 3.6 + 0.2 * -(-len(keys) // 3))
    figure, axes = plt.subplots(1, len(panels), squeeze=False, layout="constrained", figsize=size)
    for ((model, task), rows), ax in zip(panels, axes[0], strict=True):
        for (method, rank), _, color, dashes, marker in looks:
            values = rows[(rows["method"] == method) & (rows["rank"] == rank)].groupby("learning_rate")
            means, ends = (values[["forgetting", "loss"]].agg(how) for how in ("mean", ["min", "max"]))
            ax.plot(
                means["forgetting"], means["loss"], dashes, color=color, marker=marker, linewidth=1.2,
                markeredgecolor="white", markersize=7, zorder=3,
            )  # fmt: skip
            for rate, mean in means.iterrows():
                range_style = {"color": color, "linewidth": 0.8, "alpha": 0.6}
                ax.plot(ends.loc[rate, "forgetting"], (mean["loss"],) * 2, **range_style)
                ax.plot((mean["forgetting"],) * 2, ends.loc[rate, "loss"], **range_style)
        ax.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        ax.xaxis.set_major_locator(FixedLocator([-0.1, 0, 0.1, 0.3, 1, 3, 10]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel("forgotten of other texts, nats")
        ax.set_ylabel("test loss, nats")
        style.guide_lines(ax)
        where = style.sentence(model.rpartition("/")[2], task.rpartition("/")[2])
        style.headline(ax, "Lower: more learned; further left: less forgotten", where)
    for _, label, color, dashes, marker in looks:
        axes[0, 0].plot([], [], dashes, color=color, marker=marker, label=label)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(keys)), handletextpad=0.5)
    return figure


def _draw_points(rows: pd.DataFrame, multiply: bool = False) -> tuple[Figure, Axes]:
    """A line for each method and rank, a point at ``x`` for each task; points of equal ``x`` are drawn side by side."""
    rows = rows.assign(panel=_task_names(rows))
    tasks = list(dict.fromkeys(rows["panel"]))
    keys = list(dict.fromkeys(zip(rows["method"], rows["rank"], strict=True)))
    figure, ax = plt.subplots(figsize=(7.6, 1.5 + 0.28 * len(keys)), layout="constrained")
    looks = zip(tasks, style.colors(len(tasks)), islice(cycle(MARKERS), len(tasks)), strict=True)
    for n, (task, color, marker) in enumerate(looks):
        mine = rows[rows["panel"] == task]
        lines = np.array([keys.index(key) for key in zip(mine["method"], mine["rank"], strict=True)], float)
        shift = (n - (len(tasks) - 1) / 2) * 0.7 / len(tasks)
        x = mine["x"] * 2.0**shift if multiply else mine["x"]
        faces = ["white" if hollow else color for hollow in mine["hollow"]]
        ax.scatter(
            x, lines if multiply else lines + shift, 34, faces, marker=marker, edgecolors=[color], linewidths=1.2,
            zorder=3,
        )  # fmt: skip
        ax.plot([], [], marker, color=color, label=task)
    ax.set_yticks(range(len(keys)), _labels(keys), parse_math=False)
    ax.set_ylim(len(keys) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    for place in range(len(keys) - 1):
        ax.axhline(place + 0.5, linewidth=0.6, **style.ink(0.12))
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(3, len(tasks)), handletextpad=0.3)
    return figure, ax


def _task_names(rows: pd.DataFrame) -> list[str]:
    """The task of each row, with its model if there are several."""
    tasks = [task.rpartition("/")[2] for task in rows["task"]]
    models = [model.rpartition("/")[2] for model in rows["model"]]
    return [f"{task}, {model}" for task, model in zip(tasks, models, strict=True)] if len(set(models)) > 1 else tasks


def _labels(keys: Sequence[tuple[str, int]]) -> list[str]:
    """Names of methods, with their ranks if there are several."""
    several = len({rank for _, rank in keys}) > 1
    return [f"{method}, {rank}" if several and method != FULL else method for method, rank in keys]
