"""Picture of subspaces: how much two of them overlap, or how much of the gradient they capture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.utils.defaults import KINDS
from tlora.utils.text import range_text
from tlora.utils.validation import check_arguments
from viz import style
from viz.experts import join_experts
from viz.plots import heatmap

Aligned = Alignment | GradientCapture

CHANCE: dict[str, Any] = {"linestyle": (0, (1, 2)), "linewidth": 1.4, "zorder": 4}
BEST: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2}
RANDOM: dict[str, Any] = {"color": "0.72", "linewidth": 4.5, "markersize": 7, "zorder": 1.5}
"""Look of the random kind: broad and pale, so that the line of chance is visible on it."""
METHODS = {kind: facts.method for kind, facts in KINDS.items() if facts.method}
"""Methods that use directions of a kind, for the legend."""


@style.styled
def plot_alignment(result: Aligned, *, ax: Axes | None = None) -> Axes:
    """Overlap of two subspaces as a heat map, or the gradient that subspaces capture as curves over the rank.

    Parameters
    ----------
    result : Alignment or GradientCapture
        From ``tlora.align(...)``: layers across and projections down. From ``tlora.gradient_capture(...)``: a curve
        for each kind, compared with a random subspace and the best possible one of the same rank.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Colors run from the lowest to the highest overlap, or from what chance gives if that is lower: arrows
        at the color bar mark it.

    Examples
    --------
    >>> halves = [tlora.task_subspaces(model, calibration, max_rank=4, kind=kind) for kind in ("wc", "c")]
    >>> viz.plot_alignment(tlora.align(*halves, rank=4))
    <Axes: title={'left': 'wc and c overlap by ... on average at rank 4'}, xlabel='layer', ylabel='projection'>
    """
    check_arguments(plot_alignment, locals())
    if isinstance(result, Alignment):
        return _draw_modules(result, ax)
    return _draw_gradient(result, ax)


def _draw_modules(alignment: Alignment, ax: Axes | None) -> Axes:
    frame = join_experts(alignment.to_frame())
    frame = frame.assign(percent=100 * frame["overlap"])
    ax = style.axes(ax, *heatmap.size(frame))
    shares = frame[["overlap", "random"]]
    norm = Normalize(shares.min(axis=None), shares.max(axis=None))
    mesh = heatmap.draw(ax, frame, "overlap", cmap=style.SEQUENTIAL, norm=norm)
    written = heatmap.write(ax, mesh, frame, "percent", "{:.0f}", style.inches(ax))
    _color_bar(ax, mesh, frame["random"], 2.4 * len(ax.get_yticks()))
    top, low = frame.loc[frame["overlap"].idxmax()], frame.loc[frame["overlap"].idxmin()]
    first, second = alignment.sides
    mean = style.percent(frame["overlap"].mean())
    detail = style.sentence(
        f"{style.percent(low['overlap'])} ({style.place(low)}) to {style.percent(top['overlap'])} ({style.place(top)})",
        f"by chance {range_text(frame['random'], style.percent)}",
        "cells: percent" if written else "",
        "experts: means over a parameter" if len(frame) < len(alignment.names) else "",
        style.source(alignment.meta),
    )
    style.headline(ax, f"{first} and {second} overlap by {mean} on average at rank {alignment.rank}", detail)
    return ax


def _color_bar(ax: Axes, mesh: QuadMesh, chance: pd.Series, aspect: float) -> None:
    """Draw a slim color bar next to the heat map, with a mark at each overlap that chance gives."""
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.025, aspect=aspect, fraction=0.05)
    values = chance.unique()
    bar.set_label(f"overlap (arrow{'s' if len(values) > 1 else ''}: by chance)")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    bar.outline.set_visible(False)
    beside = bar.ax.transData + ScaledTranslation(-4 / 72, 0, ax.figure.dpi_scale_trans)  # on the white next to it
    for value in values:
        bar.ax.plot(
            0, value, marker=">", markersize=6, markeredgewidth=0, clip_on=False, transform=beside, **style.ink()
        )


def _draw_gradient(capture: GradientCapture, ax: Axes | None) -> Axes:
    table = capture.overall()
    ax = style.axes(ax, heatmap.WIDTH, 4.2)
    _draw_curves(ax, table, best=table.groupby("rank")["best"].first())
    ax.set_ylabel("share of the squared gradient")
    by_chance = table.loc[table["rank"].idxmin(), "random"]
    detail = style.sentence(
        f"{len(capture.names)} modules together, bars: {style.percent(capture.confidence)} intervals",
        f"at best {style.percent(table['best'].iloc[0])}, by chance {style.percent(by_chance)}",
        f"held out: {style.source(capture.meta)}",
    )
    style.headline(ax, _headline(table), detail)
    return ax


def _draw_curves(ax: Axes, table: pd.DataFrame, best: pd.Series) -> None:
    """Draw a line for each kind, the highest first in the legend, between the best possible and chance."""
    # a kind has the same color in every picture
    ranks, kinds = sorted(set(table["rank"])), list(dict.fromkeys([*KINDS, *table["kind"]]))
    n = len(kinds)
    looks = dict(zip(kinds, zip(style.colors(n), style.dashes(n), style.markers(n), strict=True), strict=True))
    drawn: list[Any] = ax.plot(best.index, best, label="best possible", marker="_", **BEST, **style.ink(0.65))
    for kind in table[table["rank"] == ranks[-1]].sort_values("captured", ascending=False)["kind"]:
        rows, (color, dash, marker) = table[table["kind"] == kind], looks[kind]
        ends = np.abs(rows[["low", "high"]].to_numpy() - rows[["captured"]].to_numpy()).T
        look: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.8, "marker": marker, "markersize": 5}
        look |= RANDOM if kind == "random" else {}
        bars = ax.errorbar(rows["rank"], rows["captured"], ends, label=kind, elinewidth=1.2, capsize=3, **look)
        drawn.append(bars)
    chance = table.groupby("rank")["random"].first()
    drawn += ax.plot(chance.index, chance, label="by chance", marker="_", **CHANCE, **style.ink())
    labels = [f"{label} ({METHODS[label]})" if (label := each.get_label()) in METHODS else label for each in drawn]
    _label(ax, ranks)
    style.name_lines(ax, dict(zip(drawn, labels, strict=True)))


def _label(ax: Axes, ranks: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
    apart = [rank for i, rank in enumerate(ranks) if i in (0, len(ranks) - 1) or len(ranks) <= 12]
    ax.xaxis.set_major_locator(FixedLocator(apart))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.set_xlabel("rank")
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    style.guide_lines(ax)


def _headline(table: pd.DataFrame) -> str:
    """The kinds that hold most at the lowest rank."""
    rank = table["rank"].min()
    rows = table[table["rank"] == rank].sort_values("captured", ascending=False).head(4)
    shares = [(kind, style.percent(x)) for kind, x in zip(rows["kind"], rows["captured"], strict=True)]
    (top, most), *others = shares
    rest = "".join(f", {kind} {share}" for kind, share in others)
    return f"At rank {rank}, {top} holds {most} of the held-out gradient{rest}"
