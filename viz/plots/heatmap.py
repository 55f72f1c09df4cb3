"""Heat map of one number per module: layers across, projections down; all experts of a parameter are one cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize

from viz import style

WIDTH = 8.6
"""Width in inches of a picture across a notebook's cell."""


def size(frame: pd.DataFrame) -> tuple[float, float]:
    """Inches for a heat map: wider with the layers, up to `WIDTH` and what long labels need, taller with the rows."""
    rows = style.projections(frame)
    width = float(np.clip(5.2 + 0.3 * len(style.layers(frame)), 6.4, WIDTH)) + label_room(rows)
    return width, 1.6 + 0.27 * max(4, len(rows))


def label_room(rows: list[str]) -> float:
    """Inches that the labels of these rows take beyond those of the usual length."""
    return 0.065 * max(0, max(len(style.cut(row)) for row in rows) - 9)


def edges(places: Sequence[int]) -> np.ndarray:
    """Edges of the cells at these consecutive places, for `pcolormesh`, which cannot infer the width of one cell."""
    return np.arange(len(places) + 1) + places[0] - 0.5


def draw(ax: Axes, frame: pd.DataFrame, value: str, **kwargs: Any) -> QuadMesh:
    """Draw a column of the frame as cells: a column for each layer, a row for each projection.

    The frame has one row per module, with ``layer`` and ``projection``; the array of the mesh is (projections, layers),
    masked for missing modules.
    """
    rows, layers = style.projections(frame), style.layers(frame)
    grid = frame.pivot(index="projection", columns="layer", values=value).reindex(index=rows, columns=layers)
    cells = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    gap = 1.2 if len(layers) <= 40 else 0
    across, down = edges(range(len(layers))), edges(range(len(rows)))
    mesh = ax.pcolormesh(across, down, cells, edgecolor="white" if gap else "face", linewidth=gap, **kwargs)
    ax.set_facecolor(style.MISSING)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [style.cut(row) for row in rows], parse_math=False)
    ax.set_ylabel("projection")
    style.layer_axis(ax, frame, columns=True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    stacks = [row.split(".")[0] for row in rows]
    if set(stacks) == {"encoder", "decoder"}:  # a line between them
        ax.axhline(stacks.index("decoder") - 0.5, color="white", linewidth=5)
    return mesh


def write(ax: Axes, mesh: QuadMesh, frame: pd.DataFrame, value: str, form: str, room: float) -> bool:
    """Write a column of the frame into the cells that `draw` drew if it fits into ``room`` inches, and say if it did.

    NaN is left out.
    """
    faces = mesh.to_rgba(np.ma.asarray(mesh.get_array()))
    rows, layers = style.projections(frame), style.layers(frame)
    room -= label_room(rows)  # long labels take their room from the axes
    frame = frame.dropna(subset=value)
    texts = frame[value].map(form.format)
    per_character = room / faces.shape[1] / texts.str.len().max()
    if per_character < 0.05:
        return False
    columns = frame["layer"].map(layers.index)
    for column, row, text in zip(columns, frame["projection"].map(rows.index), texts, strict=True):
        look: dict[str, Any] = {
            "in_layout": False,  # they are inside the cells; the layout would take a third longer
            "color": style.ink_on(faces[row, column]),
            "fontsize": 8.5 if per_character > 0.09 else 6.8 if per_character > 0.06 else 5.5,
        }
        ax.text(column, row, text, ha="center", va="center", **look)
    return True


def color_bar(ax: Axes, mesh: QuadMesh, label: str) -> None:
    """Draw a slim color bar next to the heat map."""
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=2.4 * len(ax.get_yticks()), fraction=0.05)
    bar.set_label(label)
    bar.outline.set_visible(False)
    if isinstance(mesh.norm, LogNorm):
        style.plain_logarithm(bar.ax.yaxis)


def scale(values: pd.Series) -> Normalize:
    """Linear colors, or logarithmic ones if the positive values span more than a factor of ten.

    Zero has the lowest color on either.
    """
    positive = values[values > 0]
    if len(positive) and positive.max() > 10 * positive.min():
        return LogNorm(positive.min(), positive.max(), clip=True)
    return Normalize(values.min(), values.max() or 1)
