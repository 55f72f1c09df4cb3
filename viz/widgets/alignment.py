"""AlignmentExplorer: how far two subspaces of each module point the same way, for any pair and rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter
from mpl_toolkits.axes_grid1 import make_axes_locatable
from tqdm.auto import tqdm

from tlora.subspaces.alignment import Alignment, align, label_subspaces
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import positive_int
from viz import style
from viz.plots import heatmap
from viz.widgets.base import Explorer, row, stack, table
from viz.widgets.canvas import Cells, Headline

BESIDE, GAP = 1.75, 0.75
"""Inches: the curve beside the heat map, the gap between them."""


@dataclass(frozen=True)
class AlignmentState:
    """The two sides by their labels, and how many of their first directions are compared."""

    left: str
    right: str
    rank: int


class AlignmentExplorer(Explorer[AlignmentState, pd.DataFrame]):
    """Two sides and a rank, with the overlap of the two on every module.

    Parameters
    ----------
    *sides : Subspaces
        Two or more, of the same modules: kinds, tasks, seeds, or halves of the samples. Each pair is compared once,
        here; nothing is computed when a control moves.
    labels : sequence of str, optional
        What to call the sides; by default their kinds and, where these are the same, what sets them apart.
    rank : int
        Directions compared to begin with.
    progress : bool
        Show a progress bar while the pairs are compared.

    Attributes
    ----------
    alignments : dict of Alignment
        By the pair of labels.

    Raises
    ------
    TypeError
        If a side is not a Subspaces.
    ValueError
        If there are fewer than two sides, two have one label, or they are of different modules or models; if the
        rank is below 1.
    """

    def __init__(
        self, *sides: Subspaces, labels: Sequence[str] | None = None, rank: int = 8, progress: bool = True
    ) -> None:
        if len(sides) < 2:
            raise ValueError(f"{len(sides)} side to compare: pass two or more Subspaces")
        for side in sides:
            if not isinstance(side, Subspaces):
                raise TypeError(f"a side is a {type(side).__name__}: pass Subspaces from tlora.task_subspaces")
        self.labels = list(labels) if labels is not None else label_subspaces(sides)
        if not len(set(self.labels)) == len(self.labels) == len(sides):
            raise ValueError(f"{len(sides)} sides are called {', '.join(self.labels)}: pass one label for each of them")
        rank = positive_int(rank, "rank")
        self._most = min(len(rows) for side in sides for rows in side.bases.values())
        pairs = list(combinations(zip(self.labels, sides, strict=True), 2))
        self.alignments: dict[tuple[str, str], Alignment] = {
            (a, b): align(one, other, self._most, labels=(a, b))
            for (a, one), (b, other) in tqdm(pairs, desc="alignment", unit="pair", disable=not progress)
        }
        super().__init__(AlignmentState(self.labels[0], self.labels[1], min(rank, self._most)))
        self._build()
        self._answer_while_busy()
        self._refresh()

    @property
    def alignment(self) -> Alignment:
        """The comparison that is shown, at all ranks."""
        return self._of(self.state)

    def result(self, state: AlignmentState) -> pd.DataFrame:
        """The overlap on each module: `tlora.Alignment.at` of the pair and the rank in ``state``."""
        return self._of(state).at(state.rank)

    def render(self, state: AlignmentState, ax: Axes) -> Axes:
        """Draw a state.

        Parameters
        ----------
        state : AlignmentState
            For example ``explorer.state``.
        ax : matplotlib.axes.Axes
            Where to draw; the curve of the overlap takes its room from it.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the heat map.
        """
        self._update(AlignmentPicture(ax, self._of(state)), state, self.result(state))
        return ax

    @property
    def line(self) -> str:
        """What is shown in one line of text."""
        return _finding(self.state, self._result)

    def _of(self, state: AlignmentState) -> Alignment:
        if state.left == state.right:
            raise ValueError(f"both sides are {state.left}, which overlaps with itself in full: choose another for one")
        pair = state.left, state.right
        return self.alignments[pair if pair in self.alignments else pair[::-1]]

    def _build(self) -> None:
        wide: dict[str, Any] = {"layout": {"width": "270px"}, "style": {"description_width": "initial"}}
        self._watch(
            left=ipywidgets.Dropdown(options=self.labels, value=self.state.left, description="One side", **wide),
            right=ipywidgets.Dropdown(options=self.labels, value=self.state.right, description="Other side", **wide),
            rank=ipywidgets.IntSlider(self.state.rank, 1, self._most, description="Rank", **wide),
        )
        self.summary = ipywidgets.HTML()
        self.widget = stack(row(*self.controls.values()), self.message, self.image, self.summary)
        self._canvas = self._paper(heatmap.size(self._result)[0], 1.5 + 0.27 * len(style.projections(self._result)))
        label = 0.075 * max(map(len, style.projections(self._result)))
        self._drawn = AlignmentPicture(self._canvas.axes(0.45 + label, 0.15, 0.5, 0.55), self.alignment)

    def _refresh(self) -> None:
        self._update(self._drawn, self.state, self._result)
        self.image.value = self._canvas.png(self._drawn.moving)
        by_projection = self._result.groupby("projection", sort=False)[["overlap", "random"]].mean()
        rows = [[str(p), style.percent(o), style.percent(r)] for p, o, r in by_projection.itertuples()]
        self.summary.value = table(["projection", "mean overlap", "by chance"], rows)

    def _update(self, picture: AlignmentPicture, state: AlignmentState, overlap: pd.DataFrame) -> None:
        alignment = self._of(state)
        picture.update(alignment, overlap)
        completed = sum(state.rank > known for known in alignment.determined.values())
        picture.headline.write(
            _finding(state, overlap),
            f"cells: overlap in percent, {style.percent(overlap['random'].mean())} by chance",
            f"random rows in {completed} modules: the samples determine fewer" if completed else "",
            style.source(alignment.meta),
        )


def _finding(state: AlignmentState, overlap: pd.DataFrame) -> str:
    mean = style.percent(overlap["overlap"].mean())
    top = overlap.loc[overlap["overlap"].idxmax()]
    directions = "first direction overlaps" if state.rank == 1 else f"first {state.rank} directions overlap"
    return (
        f"{state.left} and {state.right}: {directions} by {mean}; "
        f"most in {style.place(top)}, {style.percent(top['overlap'])}"
    )


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
