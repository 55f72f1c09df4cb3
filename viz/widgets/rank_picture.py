"""The picture of the AllocationExplorer: ranks, or their change since another plan, as a heat map with totals."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from mpl_toolkits.axes_grid1 import make_axes_locatable
from mpl_toolkits.axes_grid1.axes_divider import AxesDivider

from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from viz import style
from viz.widgets.canvas import Headline, boxes, place_boxes, steady
from viz.widgets.cells import Cells

ABOVE, BESIDE, GAP = 0.6, 0.85, 0.06
"""Inches: totals above and beside the heat map, the gap between them."""
FACTOR = 8
"""Colours are full at this many times the uniform rank, and at one part of as many."""


class RankPicture:
    """Artists on given axes that `update` brings up to a plan, without making new ones.

    White is the rank of a uniform plan and full colour eight times of it, whatever the plan, so that two plans can
    be compared by eye. The totals are in multiples of the uniform plan's.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw; the totals take their room from it.
    sensitivity : Sensitivity
        Names the modules that there are.
    """

    @style.styled
    def __init__(self, ax: Axes, sensitivity: Sensitivity) -> None:
        self.names = sensitivity.names
        self._colours: tuple[str, ...] = ()
        places = sensitivity.layers, sensitivity.projections
        room = style.inches(ax) - BESIDE - GAP
        self.cells = Cells(ax, *places, room, cmap=style.DIVERGING, norm=Normalize(-1, 1))
        self.marks = boxes(ax, facecolor="none", edgecolor="0.1", linewidth=1.4, zorder=4)
        divider = make_axes_locatable(ax)
        self.above = divider.append_axes("top", ABOVE, pad=GAP, sharex=ax)
        self.beside = divider.append_axes("right", BESIDE, pad=GAP, sharey=ax)
        self._draw_totals()
        self._draw_colours(divider)
        self.headline = Headline(ax, lift=ABOVE + GAP)

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        bars = [self.layer_bars, self.projection_bars]
        return [*self.cells.artists, *bars, *self.uniform, self.marks, *self.headline.artists]

    @property
    def key(self) -> Hashable:
        """What the rest of the picture depends on."""
        return self.above.get_ylim(), self.beside.get_xlim(), self._colours

    def update(self, plan: Allocation, other: Allocation | None = None) -> None:
        """Show a plan; with another one, its change since that.

        Parameters
        ----------
        plan : Allocation
            Of the sensitivity.
        other : Allocation, optional
            The plan to compare with.
        """
        ranks = np.array([plan.ranks.get(name, np.nan) for name in self.names])
        if other is None:
            self._label_colours("rank, × uniform", f"≤ 1/{FACTOR}", "1", f"≥ {FACTOR}")
            texts = ["" if np.isnan(rank) else f"{rank:.0f}" for rank in ranks]
            self.cells.update(ranks, texts, LogNorm(plan.rank / FACTOR, plan.rank * FACTOR))
        else:
            self._label_colours("change of rank", f"≤ −{plan.rank}", "0", f"≥ +{plan.rank}")
            change = np.array([plan.ranks.get(name, 0) - other.ranks.get(name, 0) for name in self.names], float)
            texts = [f"{step:+.0f}".replace("-", "−") if step else "" for step in change]
            self.cells.update(change, texts, Normalize(-plan.rank, plan.rank))
        self._mark([name in plan.edits or name in plan.knobs.pinned for name in self.names])
        self._set_totals(np.nan_to_num(ranks) / plan.rank)

    def _label_colours(self, *labels: str) -> None:
        """A title, and labels of both ends and the middle of the colour bar."""
        if labels != self._colours:
            self._colours = labels
            self.bar.set_title(labels[0], fontsize=8.5, pad=3, loc="center")
            self.bar.set_xticks([0, 0.5, 1], labels[1:])

    def _mark(self, by_hand: list[bool]) -> None:
        x, y = self.cells.first + self.cells.column[by_hand], self.cells.row[by_hand]
        place_boxes(self.marks, x - 0.44, x + 0.44, y - 0.44, y + 0.44)

    def _set_totals(self, shares: np.ndarray) -> None:
        """Bars of the means over a layer or projection of the ranks, as multiples of the uniform one."""
        layers, projections = _means(shares, self.cells.column), _means(shares, self.cells.row)
        x, y = self.cells.first + np.arange(len(layers)), np.arange(len(projections))
        place_boxes(self.layer_bars, x - 0.4, x + 0.4, 0, layers)
        place_boxes(self.projection_bars, 0, projections, y - 0.4, y + 0.4)
        self.above.set_ylim(0, _round_up(layers.max()))
        self.beside.set_xlim(0, _round_up(projections.max()))

    def _draw_totals(self) -> None:
        look: dict[str, Any] = {"facecolor": "0.72", "linewidth": 0, "zorder": 2}
        self.layer_bars, self.projection_bars = boxes(self.above, **look), boxes(self.beside, **look)
        line: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--", "zorder": 3} | style.ink(0.85)
        self.uniform = [self.above.axhline(1, **line), self.beside.axvline(1, **line)]
        self.above.set_ylabel("× uniform")
        self.beside.set_xlabel("× uniform", labelpad=0)
        self.above.tick_params(labelbottom=False, bottom=False)
        self.beside.tick_params(labelleft=False, left=False)
        for panel in (self.above, self.beside):
            steady(panel)
        self.above.spines["bottom"].set_visible(False)
        self.beside.spines["left"].set_visible(False)

    def _draw_colours(self, divider: AxesDivider) -> None:
        """A colour bar in the corner that the two rows of bars leave free."""
        corner = style.figure_of(self.above).add_axes((0, 0, 1, 1), label="colours")
        corner.set_axes_locator(divider.new_locator(nx=2, ny=2))
        corner.axis("off")
        self.bar = corner.inset_axes((0.08, 0.4, 0.84, 0.18))
        self.bar.imshow(
            np.linspace(0, 1, 256)[None], cmap=style.DIVERGING, aspect="auto", extent=(0, 1, 0, 1), origin="upper"
        )
        self.bar.set_yticks([])
        self.bar.spines[:].set_visible(False)
        self.bar.tick_params(length=2, pad=1, labelsize=8)


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of the values of each group; 0 where a layer has no module."""
    return np.bincount(groups, values) / np.maximum(np.bincount(groups), 1)


def _round_up(value: float) -> float:
    """The next of 2, 4, 8 ...: axes that stay as they are while a plan changes a little."""
    return 2.0 ** max(1, math.ceil(math.log2(1.02 * value)))
