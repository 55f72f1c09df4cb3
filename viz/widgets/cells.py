"""A heat map of one number a module whose cells change in place, with numbers in them where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray

from viz import heatmap, style
from viz.widgets.canvas import Numbers

SIZES = (8.5, 7.5, 6.5, 5.5)
"""Points of the numbers: the largest that fits is taken, and no number where none does."""


class Cells:
    """Cells of all modules on given axes, layers across and projections down.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw.
    layers : mapping of int
        Index of the block of each module.
    projections : mapping of str
        Role of each module within its block, in the same order.
    room : float
        Width of the heat map in inches.
    **look
        For the mesh, e.g. ``cmap`` and ``norm``.
    """

    def __init__(
        self, ax: Axes, layers: Mapping[str, int], projections: Mapping[str, str], room: float, **look: Any
    ) -> None:
        frame = pd.DataFrame({"layer": list(layers.values()), "projection": list(projections.values()), "value": 0.0})
        rows = style.projections(frame)
        self.first = int(frame["layer"].min())
        self.column = frame["layer"].to_numpy() - self.first
        self.row = frame["projection"].map(rows.index).to_numpy()
        self._shape = len(rows), int(self.column.max()) + 1
        self._width = 72 * (room - heatmap.beside(rows)) / self._shape[1]  # of a cell, in points
        self.mesh = heatmap.draw(ax, frame, "value", **look)
        self.numbers = Numbers(ax, np.column_stack([frame["layer"], self.row]))

    @property
    def artists(self) -> list[Artist]:
        """The cells and their numbers."""
        return [self.mesh, self.numbers]

    def update(self, values: ArrayLike, texts: Sequence[str], norm: Normalize | None = None) -> None:
        """Set the cells.

        Parameters
        ----------
        values : (M,) array
            One a module; NaN leaves a grey cell.
        texts : sequence of str
            What to write, dark on light and light on dark.
        norm : matplotlib.colors.Normalize, optional
            Of the colours, if it changes.
        """
        cells: NDArray[np.float64] = np.full(self._shape, np.nan)
        cells[self.row, self.column] = values
        if norm is not None:
            self.mesh.set_norm(norm)
        self.mesh.set_array(np.ma.masked_invalid(cells))
        faces = self.mesh.to_rgba(np.ma.masked_invalid(cells))[self.row, self.column, :3]
        dark = faces @ (0.299, 0.587, 0.114) < 0.55
        widest = self._width / 0.72 / max(2, *map(len, texts))
        size = next((size for size in SIZES if size <= widest), 0.0)
        self.numbers.write(texts if size else [""] * len(texts), size, np.where(dark[:, None], 1.0, 0.15) * np.ones(3))
