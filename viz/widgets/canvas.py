"""A figure that becomes PNG bytes quickly: what stays the same is kept as pixels, numbers are drawn as paths."""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.image import imsave
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, ScaledTranslation
from numpy.typing import ArrayLike, NDArray

from viz import style
from viz.plots import heatmap

DPI = 144
"""Pixels per inch: one and a half of what a browser shows, so that text is sharp on dense screens too."""

KEPT = 8
"""Backgrounds that a canvas keeps, of three megabytes each."""


SIZES = (8.5, 7.5, 6.5, 5.5)
"""Points of the numbers: the largest that fits is taken, and no number where none does."""


class Canvas:
    """A figure that pyplot does not manage.

    Parameters
    ----------
    width, height : float
        Inches; a browser shows 96 pixels an inch.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = style.Paper(figsize=(width, height), dpi=DPI, facecolor="white")
        self.figure.set_layout_engine("none")
        self._agg = FigureCanvasAgg(self.figure)
        self._still: dict[Hashable, Any] = {}

    @style.styled
    def axes(self, left: float, right: float, bottom: float, top: float) -> Axes:
        """Axes at margins in inches, which no layout moves later."""
        width, height = self.figure.get_size_inches()
        box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        return self.figure.add_axes(box)

    def png(self, moving: Sequence[Artist], key: Hashable = None) -> bytes:
        """The figure as PNG bytes.

        Parameters
        ----------
        moving : sequence of Artist
            What is drawn again every time, the hindmost first.
        key : hashable
            All that the rest of the figure depends on: it is drawn once for each key, the last few are kept.

        Returns
        -------
        bytes
            Of a PNG file.
        """
        if key not in self._still:
            for artist in moving:
                artist.set_animated(True)
            self._agg.draw()
            self._still = dict([*self._still.items(), (key, self._agg.copy_from_bbox(self.figure.bbox))][-KEPT:])
        self._agg.restore_region(self._still[key])
        for artist in moving:
            artist.draw(self._agg.get_renderer())
        file = io.BytesIO()
        # Compression beyond the first level takes longer than it saves.
        imsave(
            file, np.asarray(self._agg.buffer_rgba()), format="png", origin="upper", pil_kwargs={"compress_level": 1}
        )
        return file.getvalue()


def steady(ax: Axes) -> None:
    """Style ticks that are made later like the present ones: widgets draw outside of our settings.

    Settings are global, and a widget may draw in the thread that handles its controls while a cell runs in another.
    """
    ax.tick_params(labelsize=style.STYLE["xtick.labelsize"], colors=plt.rcParams["xtick.color"])


class Numbers(PathCollection):
    """Short texts at many places, drawn at once: several times as fast as a Text for each.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw; the collection adds itself.
    places : (N, 2) array
        Centres of the texts, in data.
    """

    def __init__(self, ax: Axes, places: ArrayLike) -> None:
        super().__init__([], offsets=places, offset_transform=ax.transData, linewidth=0, zorder=3)
        figure = style.figure_of(ax)
        self.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)
        ax.add_collection(self, autolim=False)

    def write(self, texts: Iterable[str], size: float, colours: Any) -> None:
        """Set the texts, one a place, their size in points, and their colours."""
        self.set_paths([_outline(text, size) for text in texts])
        self.set_facecolor(colours)


@lru_cache(maxsize=4096)
def _outline(text: str, size: float) -> Path:
    """The text as a path in points: centred across, and upwards as a digit is."""
    if not text:
        return Path(np.zeros((1, 2)))
    path, digit = TextPath((0, 0), text, size=size), TextPath((0, 0), "0", size=size)
    box = path.get_extents()
    middle = (-(box.x0 + box.x1) / 2, -digit.get_extents().y1 / 2)
    return Path(path.vertices + np.array(middle), path.codes)


def boxes(ax: Axes, **look: Any) -> PolyCollection:
    """An empty collection of rectangles, for `place_boxes`."""
    collection = PolyCollection([], **look)
    ax.add_collection(collection, autolim=False)
    return collection


def place_boxes(collection: PolyCollection, left: ArrayLike, right: ArrayLike, low: ArrayLike, high: ArrayLike) -> None:
    """Put rectangles at these edges, in data; each of the four is one number or one a rectangle."""
    x0, x1, y0, y1 = np.broadcast_arrays(*(np.asarray(edge, float) for edge in (left, right, low, high)))
    corners: Any = np.stack([np.stack(c, -1) for c in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)
    collection.set_verts(corners)


class Headline:
    """A finding and a grey line of detail at fixed places above the axes.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Below the texts.
    """

    def __init__(self, ax: Axes) -> None:
        figure = style.figure_of(ax)

        def above(points: float) -> Any:
            return ax.transAxes + ScaledTranslation(0, points / 72, figure.dpi_scale_trans)

        # a name of the user's may hold dollar signs that are not a formula
        look: dict[str, Any] = {"va": "baseline", "ha": "left", "clip_on": False, "parse_math": False}
        self._edge = figure.bbox
        self.finding = ax.text(0, 1, "", fontsize=10.5, transform=above(22), **look)
        self.detail = ax.text(0, 1, "", fontsize=8.5, transform=above(8), **look, **style.ink(0.6))

    @property
    def artists(self) -> list[Artist]:
        """Both texts."""
        return [self.finding, self.detail]

    def write(self, finding: str, *detail: str) -> None:
        """Set the finding, and the parts of the detail that are not empty; what goes beyond the picture is left out."""
        for text, words in ((self.finding, finding), (self.detail, style.sentence(*detail))):
            text.set_text(words)
            while text.get_window_extent().x1 > self._edge.x1 and " " in words:
                words = words.rpartition(" ")[0].rstrip(" ·")
                text.set_text(f"{words} …")


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
        rows, there = style.projections(frame), style.layers(frame)
        self.column = frame["layer"].map(there.index).to_numpy()
        self.row = frame["projection"].map(rows.index).to_numpy()
        self._shape = len(rows), len(there)
        self._width = 72 * (room - heatmap.beside(rows)) / self._shape[1]  # of a cell, in points
        self.mesh = heatmap.draw(ax, frame, "value", **look)
        self.numbers = Numbers(ax, np.column_stack([self.column, self.row]))

    @property
    def artists(self) -> list[Artist]:
        """The cells and their numbers."""
        return [self.mesh, self.numbers]

    def update(self, values: ArrayLike, texts: Sequence[str]) -> None:
        """Set the cells.

        Parameters
        ----------
        values : (M,) array
            One a module; NaN leaves a grey cell.
        texts : sequence of str
            What to write, dark on light and light on dark.
        """
        cells: NDArray[np.float64] = np.full(self._shape, np.nan)
        cells[self.row, self.column] = values
        self.mesh.set_array(np.ma.masked_invalid(cells))
        faces = self.mesh.to_rgba(np.ma.masked_invalid(cells))[self.row, self.column, :3]
        dark = faces @ (0.299, 0.587, 0.114) < 0.55
        widest = self._width / 0.72 / max(2, *map(len, texts))
        size = next((size for size in SIZES if size <= widest), 0.0)
        self.numbers.write(texts if size else [""] * len(texts), size, np.where(dark[:, None], 1.0, 0.15) * np.ones(3))
