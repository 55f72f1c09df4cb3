"""Picture of a ResourceEstimate: the peak memory of training, with A trained and frozen."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tlora.allocation.footprint import TRAININGS
from tlora.resources.estimate import ResourceEstimate
from tlora.utils.text import size_text
from tlora.utils.validation import check_arguments
from viz import style

GAP = 0.8
"""Rows between the bars without and with gradient checkpointing, for the line of text there."""


@style.styled
def plot_memory(estimate: ResourceEstimate, *, ax: Axes | None = None) -> Axes:
    """Peak memory of a training step as bars: LoRA and a frozen ``A``, with and without gradient checkpointing.

    Parameters
    ----------
    estimate : ResourceEstimate
        From ``tlora.estimate(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The parts of the bars are named above the first one; the line is the memory, if the estimate has one.

    Examples
    --------
    >>> viz.plot_memory(tlora.estimate("base", rank=8, length=64))
    <Axes: title={'left': '...'}, xlabel='peak memory of a training step, GB'>
    """
    check_arguments(plot_memory, locals())
    bars = _ways(estimate)
    checkpointing = bars["gradient_checkpointing"]
    places = [n + GAP * on for n, on in enumerate(checkpointing)]
    ax = style.axes(ax, 7.2, 0.4 * len(bars) + 2.0)
    _draw_bars(ax, estimate, bars, places)
    ax.set_yticks(places, [TRAININGS[kind].replace(", ", ",\n") for kind in bars["training"]])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="peak memory of a training step, GB", ylim=(places[-1] + 0.6, -1.3))
    if checkpointing.any():
        first = places[checkpointing.tolist().index(True)]
        ax.text(0, first - 0.62, "with gradient checkpointing", va="bottom", fontsize=8.5, **style.ink(0.6))
    if estimate.memory is not None:
        ax.axvline(estimate.memory / 1e9, **style.ink(), linewidth=1)
        look: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8.5}
        ax.annotate(f"{estimate.memory / 1e9:g} GB of memory", (estimate.memory / 1e9, 0), (4, 4), **look)
    recipe = estimate.meta.recipe
    work = f"{recipe['batch_size']} samples of {recipe['length']:,} tokens, {recipe['dtype']}, rank {recipe['rank']}"
    style.headline(ax, _headline(bars), style.sentence(work, PurePath(estimate.meta.model).name))
    return ax


def _ways(estimate: ResourceEstimate) -> pd.DataFrame:
    """The ways to train that differ from what was asked for in checkpointing and in what is trained alone."""
    ways, recipe = estimate.what_fits, estimate.meta.recipe
    bits = recipe["bits"] or ways["bits"].max()
    asked = (ways["batch_size"] == recipe["batch_size"]) & (ways["bits"] == bits)
    asked &= (ways["optim"] == recipe["optim"]) & (ways["gpus"] == recipe["gpus"])
    ways = ways[asked].assign(order=ways["training"].map(list(TRAININGS).index))
    return ways.sort_values(["gradient_checkpointing", "order"])


def _draw_bars(ax: Axes, estimate: ResourceEstimate, bars: pd.DataFrame, places: list[float]) -> None:
    """Draw the parts of each bar, with their names above the first and the sum at the end."""
    weights, left = estimate.bytes["weights"] / 1e9, 0.0 * bars["gigabytes"]
    rest = bars["gigabytes"] - weights - bars["activations"]
    parts = {"weights": left + weights, "stored activations": bars["activations"], "other": rest}
    for (name, widths), color in zip(parts.items(), ("0.72", *style.colors(2)), strict=True):
        ax.barh(places, widths, left=left, height=0.72, color=color)
        ax.text(left.iloc[0], places[0] - 0.45, name, color="0.4" if color == "0.72" else color, fontsize=8.5)
        left = left + widths
    for place, end in zip(places, left, strict=True):
        ax.annotate(f"{end:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)


def _headline(bars: pd.DataFrame) -> str:
    peaks = bars[~bars["gradient_checkpointing"]].set_index("training")["gigabytes"]
    lora, frozen = (size_text(1e9 * peaks[kind]) for kind in ("A and B", "B"))
    return f"A training step takes {frozen} with A frozen, and {lora} with LoRA"
