"""The picture of the AlignmentExplorer: overlap of every module, and of all of them by rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from mpl_toolkits.axes_grid1 import make_axes_locatable

from tlora.subspaces.alignment import Alignment
from viz import style
from viz.widgets.canvas import Headline
from viz.widgets.cells import Cells

BESIDE, GAP = 1.75, 0.75
"""Inches: the curve beside the heat map, the gap between them."""


class AlignmentPicture:
    """Artists on given axes that `update` brings up to an overlap, without making new ones.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw the heat map; the curve takes its room from it.
    alignment : Alignment
        Names the modules that there are.
    """

    @style.styled
    def __init__(self, ax: Axes, alignment: Alignment) -> None:
        room = style.inches(ax) - BESIDE - GAP
        places = alignment.layers, alignment.projections
        self.cells = Cells(ax, *places, room, cmap=style.SEQUENTIAL, norm=Normalize(0, 1))
        self.curve = make_axes_locatable(ax).append_axes("right", BESIDE, pad=GAP)
        grey: dict[str, Any] = {"linewidth": 1, "linestyle": "--"} | style.ink(0.7)
        self.cursor = self.curve.axvline(1, **grey)
        blue = style.colours(1)[0]
        self.mean = self.curve.plot([], [], color=blue, linewidth=1.8, label="mean of all")[0]
        self.chance = self.curve.plot([], [], color="0.5", linewidth=1.2, linestyle=":", label="by chance")[0]
        self.curve.set(
            xlabel="rank", ylabel="overlap", ylim=(0, 1.02), xlim=(1 - 0.08 * alignment.rank, alignment.rank + 0.5)
        )
        self.curve.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        self.curve.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        self.curve.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        strip = self.curve.inset_axes((0, 0, 0.045, 1 / 1.02))  # the colours stand on the scale of the curve
        strip.imshow(np.linspace(1, 0, 256)[:, None], cmap=style.SEQUENTIAL, aspect="auto", origin="upper")
        strip.set_axis_off()
        self.legend = self.curve.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
        style.guide_lines(self.curve)
        self.headline = Headline(ax)

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        lines = [self.cursor, self.chance, self.mean]
        return [*self.cells.artists, *lines, self.legend, *self.headline.artists]

    def update(self, alignment: Alignment, overlap: pd.DataFrame) -> None:
        """Show the overlap of a pair at a rank.

        Parameters
        ----------
        alignment : Alignment
            The pair.
        overlap : pandas.DataFrame
            ``alignment.at(rank)``.
        """
        shares = overlap["overlap"].to_numpy()
        self.cells.update(shares, [f"{100 * share:.0f}" for share in shares])
        rank = int(overlap["rank"].iloc[0])
        self.cursor.set_xdata([rank, rank])
        ranks = np.arange(1, alignment.rank + 1)
        self.mean.set_data(ranks, np.mean([values.numpy() for values in alignment.overlaps.values()], axis=0))
        for line in (self.mean, self.chance):
            line.set_marker("o" if len(ranks) == 1 else "")
        self.chance.set_data(ranks, ranks * np.mean([1 / d_in for _, d_in in alignment.shapes.values()]))
