"""AlignmentExplorer: how far two subspaces of each module point the same way, for any pair and rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from tlora.subspaces.alignment import Alignment, align, told_apart
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import positive_int
from viz import heatmap, style
from viz.widgets.alignment_picture import AlignmentPicture
from viz.widgets.base import Explorer, row, table


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
        If a side is no Subspaces.
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
        self.labels = list(labels) if labels is not None else told_apart(sides)
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
        self.widget = ipywidgets.VBox([row(*self.controls.values()), self.message, self.image, self.summary])
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
            f"{completed} modules beyond what their matrices determine" if completed else "",
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
