"""Picture of an Allocation: where the rank goes, compared with a uniform allocation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.axes_grid1 import make_axes_locatable
from mpl_toolkits.axes_grid1.axes_divider import AxesDivider

from tlora.allocation.allocation import Allocation
from tlora.utils.text import range_text
from tlora.utils.validation import check_arguments
from viz import style
from viz.plots import heatmap

BARS = "0.72"
UNIFORM_LINE: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--", "baseline": None}
ABOVE, BESIDE, GAP = 0.65, 0.9, 0.06
"""Inches: totals above and beside the heat map, the gap between them."""


@style.styled
def plot_allocation(allocation: Allocation, *, ax: Axes | None = None) -> Axes:
    """Heat map of the ranks, layers across and projections down, with totals along both sides.

    White is the rank that a uniform allocation gives to every module, blue is less, red is more; half and twice the
    rank are equally strong. Gray modules are left out, outlined ones were set by hand. The dashed lines across the
    totals are those of the uniform allocation, which holds the modules that are left out, too.

    Parameters
    ----------
    allocation : Allocation
        From ``tlora.allocate(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default. The totals and the color bar take their room from it.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the heat map.

    Examples
    --------
    >>> viz.plot_allocation(allocation)
    <Axes: title={'left': 'Ranks from ...'}, xlabel='layer', ylabel='projection'>
    """
    check_arguments(plot_allocation, locals())
    frame = frame_of_all(allocation)
    ax = style.axes(ax, *allocation_size(allocation))
    nominal, low, high = allocation.rank, int(frame["rank"].min()), int(frame["rank"].max())
    factor = max(high / nominal, nominal / low, 2)
    norm = LogNorm(nominal / factor, nominal * factor)
    mesh = heatmap.draw(ax, frame, "rank", cmap=style.DIVERGING, norm=norm)
    heatmap.write(ax, mesh, frame, "rank", "{:.0f}", style.inches(ax) - BESIDE - GAP)
    draw_outline(ax, allocation, [*allocation.edits, *allocation.options.pinned])
    divider = make_axes_locatable(ax)
    _layer_totals(divider.append_axes("top", ABOVE, pad=GAP, sharex=ax), frame)
    _projection_totals(divider.append_axes("right", BESIDE, pad=GAP, sharey=ax), frame)
    _color_bar(divider, mesh, nominal, {low, nominal, high})
    style.headline(ax, allocation_headline(allocation), _detail(allocation, frame), lift=ABOVE + GAP)
    return ax


def allocation_size(allocation: Allocation) -> tuple[float, float]:
    """Inches for the heat map and the totals above it."""
    width, height = heatmap.size(frame_of_all(allocation))
    return width, height + 0.8


def draw_outline(ax: Axes, allocation: Allocation, names: Collection[str], color: str = "0.1") -> None:
    """Draw a frame around the cells of these modules, by their full names."""
    rows, layers = list(dict.fromkeys(allocation.projections.values())), sorted(set(allocation.layers.values()))
    for name in names:
        corner = layers.index(allocation.layers[name]) - 0.44, rows.index(allocation.projections[name]) - 0.44
        ax.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=color, linewidth=1.6, zorder=4))


def frame_of_all(allocation: Allocation) -> pd.DataFrame:
    """The table of an allocation with the modules that it leaves out (NaN), and the ``uniform`` rank of each."""
    frame = allocation.to_frame().set_index("module").reindex(allocation.names).reset_index()
    places = {"layer": list(allocation.layers.values()), "projection": list(allocation.projections.values())}
    return frame.assign(**places, uniform=allocation.rank)


def _color_bar(divider: AxesDivider, mesh: QuadMesh, nominal: int, ranks: set[int]) -> None:
    """Draw a color bar in the corner between the two rows of bars."""
    corner = mesh.figure.add_axes((0, 0, 1, 1), label="colors")
    corner.set_axes_locator(divider.new_locator(nx=2, ny=2))
    corner.axis("off")
    ticks = sorted(ranks)
    bar = mesh.figure.colorbar(mesh, cax=corner.inset_axes((0.08, 0.4, 0.78, 0.18)), orientation="horizontal")
    span = np.log(ticks[-1] / ticks[0]) or 1
    labeled: list[int] = []
    for rank in sorted(ticks, key=lambda rank: (rank != nominal, -rank)):  # the first of two whose labels would meet
        if all(abs(np.log(rank / other)) >= 0.2 * span for other in labeled):
            labeled.append(rank)
    bar.set_ticks(ticks, labels=[str(rank) if rank in labeled else "" for rank in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, pad=1, labelsize=8)
    bar.ax.set_title("rank", loc="center", fontsize=8.5, pad=3)
    if len(ticks) > 1:
        bar.ax.set_xlim(ticks[0], ticks[-1])


def _layer_totals(above: Axes, frame: pd.DataFrame) -> None:
    """Draw bars above the heat map: the sum of the ranks of each layer."""
    layers = style.layers(frame)
    places = range(len(layers))
    above.bar(places, _totals(frame, "layer", "rank", layers), width=0.8, color=BARS)
    above.stairs(_totals(frame, "layer", "uniform", layers), heatmap.edges(places), **UNIFORM_LINE, **style.ink(0.85))
    above.set_ylabel("total")
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    above.tick_params(labelbottom=False, bottom=False)
    above.spines["bottom"].set_visible(False)


def _projection_totals(beside: Axes, frame: pd.DataFrame) -> None:
    """Draw bars to the right of the heat map: the sum of the ranks of each projection."""
    rows = style.projections(frame)
    places = range(len(rows))
    beside.barh(places, _totals(frame, "projection", "rank", rows), height=0.8, color=BARS)
    totals = _totals(frame, "projection", "uniform", rows)
    beside.stairs(totals, heatmap.edges(places), orientation="horizontal", **UNIFORM_LINE, **style.ink(0.85))
    beside.set_xlabel("total rank", labelpad=0)  # no lower than the label of the layers
    beside.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    beside.tick_params(labelleft=False, left=False)
    beside.spines["left"].set_visible(False)


def _totals(frame: pd.DataFrame, by: str, value: str, groups: Sequence[Any]) -> pd.Series:
    """Sums over these groups, 0 for groups without modules."""
    return frame.groupby(by)[value].sum().reindex(groups, fill_value=0)


def allocation_headline(allocation: Allocation) -> str:
    """The allocation in a few words."""
    ranks = allocation.ranks
    low, high = min(ranks.values()), max(ranks.values())
    if low == high:
        return f"Every module {'that is adapted ' if left_out(allocation) else ''}gets rank {high}"
    top = [name for name, rank in ranks.items() if rank == high]
    largest = f"layer {allocation.layers[top[0]]} {allocation.projections[top[0]]}"
    return (
        f"Ranks from {low} to {high} instead of {allocation.rank} everywhere; "
        f"most to {largest if len(top) == 1 else f'{len(top)} modules'}"
    )


def left_out(allocation: Allocation) -> str:
    """How many modules have no adapter, and why; empty if all have one."""
    counts = {"excluded": len(allocation.excluded), "dropped": len(allocation.dropped)}
    return " and ".join(f"{count:,} {why}" for why, count in counts.items() if count)


def _detail(allocation: Allocation, frame: pd.DataFrame) -> str:
    unit = "ranks" if allocation.budget == "ranks" else "entries of B"
    with_out = f", with the {left_out(allocation)}" if left_out(allocation) else ""
    return style.sentence(
        f"{allocation.budget_used:,} of {allocation.budget_total:,} {unit}",
        f"scaling {range_text(frame['scaling'], style.number)}",
        f"white, dashed: uniform{with_out}",
        "outlined: set by hand" if allocation.edits or allocation.options.pinned else "",
        style.source(allocation.meta),
    )
