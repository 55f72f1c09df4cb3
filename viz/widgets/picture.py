"""The workbench as a picture, for readers without the part in the browser: the map, and the selected module or pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter

from tlora.allocation.allocation import Allocation
from tlora.subspaces.alignment import Alignment
from viz import style
from viz.experts import join_experts
from viz.plots import heatmap
from viz.plots.alignment import plot_alignment
from viz.plots.allocation import allocation_size, draw_outline, plot_allocation
from viz.widgets.base import png_bytes

SELECTED = "#e07b00"
"""Color of the frame around a selected module, as in the browser."""
MODULE_HEIGHT = 2.9
"""Inches of the charts of the selected module."""


@style.styled
def draw_workbench(
    allocation: Allocation,
    about: dict[str, Any],
    selected: Sequence[str],
    pair: tuple[Alignment, int] | None,
    note: str = "",
) -> bytes:
    """PNG bytes of the ranks, and below them of the compared pair at its rank, or of the module selected last."""
    width, height = allocation_size(allocation)
    lower = 0.0
    if pair is not None:
        lower = heatmap.size(join_experts(pair[0].to_frame()))[1]
    elif about["spectra"] and selected:
        lower = MODULE_HEIGHT
    figure = style.Paper(figsize=(width, height + lower), facecolor="white", layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, lower]) if lower else [figure]
    above, below = parts[0], parts[-1]
    ax = plot_allocation(allocation, ax=above.add_subplot())
    draw_outline(ax, allocation, selected, SELECTED)
    if pair is not None:
        plot_alignment(first_directions(*pair), ax=below.add_subplot())
    elif lower:
        draw_module(below, about, selected[-1], allocation)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=9, **style.ink(0.75))
    return png_bytes(figure)


def first_directions(alignment: Alignment, rank: int) -> Alignment:
    """The alignment at a lower rank; its angles stay those of the largest one."""
    return replace(alignment, rank=rank, overlaps={name: of[:rank] for name, of in alignment.overlaps.items()})


def draw_module(figure: SubFigure, about: dict[str, Any], name: str, allocation: Allocation) -> None:
    """Cumulative shares of a module's directions for each kind, and its shares by rank, with a line at its rank."""
    k, rank = about["names"].index(name), allocation.ranks.get(name, 0)
    spectra = about["spectra"]
    tabs = {tab["name"]: tab for tab in about["tabs"]}
    sums, by_rank = figure.subplots(1, 2)
    lines = [(one["label"], what, one["curves"][what], one["index"][k]) for one in spectra for what in one["curves"]]
    for (label, what, curve, i), color in zip(lines, style.colors(len(lines)), strict=True):
        sums.plot(curve["at"][i], curve["sums"][i], color=color, linewidth=1.8, label=f"{what}, {label}")
    for (curve_name, words), color in zip(about["by_rank"].items(), style.colors(3), strict=False):
        values = tabs[curve_name]["curves"][k]
        by_rank.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=1.8, label=words)
    sums.set(xscale="log", xlabel="first directions taken", ylabel="cumulative share")
    sums.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    sums.xaxis.set_minor_locator(NullLocator())
    by_rank.set(xlabel="rank", ylabel="share", xlim=(0, about["most"] + 1))
    for panel in (sums, by_rank):
        _finish(panel, rank)
    held = [f"{style.percent(_at_rank(curve, i, rank))} of the {what}" for _, what, curve, i in lines[:2] if rank]
    what = f"rank {rank} holds {' and '.join(held)}" if held else "left out"
    layer, projection = allocation.layers[name], allocation.projections[name]
    sums.set_title(f"Layer {layer} {projection}: {what}", loc="left", parse_math=False)


def _at_rank(curve: dict[str, Any], i: int, rank: int) -> float:
    return float(np.interp(rank, curve["at"][i], curve["sums"][i]))


def _finish(ax: Axes, rank: int) -> None:
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    style.guide_lines(ax)
    if rank:
        ax.axvline(rank, linewidth=1, linestyle="--", **style.ink(0.7))
    style.name_lines(ax)
