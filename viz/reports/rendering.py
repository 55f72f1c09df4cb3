"""Templates of the pages: HTML that escapes what is put into it, and Markdown with filters that do."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import matplotlib.style
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.alignment import Alignment
from tlora.training.run import TrainingRun
from viz import style
from viz.plots import heatmap
from viz.plots.alignment import Aligned, plot_alignment
from viz.plots.allocation import allocation_size, plot_allocation
from viz.plots.sensitivity import plot_sensitivity
from viz.plots.spectrum import plot_spectrum
from viz.plots.training import plot_training
from viz.reports.components import Cell, Picture, Table

# Letters as outlines, so that the page needs no fonts; the same picture gives the same bytes.
SVG: dict[str, Any] = {"svg.fonttype": "path", "svg.hashsalt": "tlora"}


@cache
def template(name: str) -> Template:
    """A template of this package; what is put into HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("viz.reports"),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "fenced": fenced, "markdown": markdown}
    return environment.get_template(name)


def escaped(text: object) -> str:
    """Text on one line in which Markdown and HTML mean nothing."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", one_line.replace("&", "&amp;").replace("<", "&lt;"))


def fenced(code: str, language: str) -> str:
    """A block of code, fenced by more backticks than are in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}{language}\n{code}\n{fence}"


def markdown(part: Table) -> str:
    """A table whose cells are all text."""
    titles: list[Cell] = [column.title for column in part.columns]
    rows = [titles, *part.rows]
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    rule = "|" + "|".join("--:" if column.is_number else "---" for column in part.columns) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spectrum_pictures(spectrum: Spectrum) -> list[Picture]:
    """How much of the variance the first directions hold, and the effective rank over the layers."""
    pictures = [_picture(partial(plot_spectrum, spectrum), (heatmap.WIDTH, 4.2), "Share of the variance by direction")]
    if len(set(spectrum.layers.values())) > 1:
        plot = partial(plot_spectrum, spectrum, view="effective_rank")
        pictures.append(_picture(plot, (heatmap.WIDTH, 4.2), "Effective rank by layer and projection"))
    return pictures


def alignment_picture(result: Aligned) -> Picture:
    """Heat map of the overlaps, or curves of what subspaces capture."""
    size = heatmap.size(result.to_frame()) if isinstance(result, Alignment) else (heatmap.WIDTH, 4.2)
    what = "Heat map of overlaps" if isinstance(result, Alignment) else "What subspaces capture, by rank"
    return _picture(partial(plot_alignment, result), size, what)


def sensitivity_picture(sensitivity: Sensitivity) -> Picture:
    """Heat map of the scores."""
    size = heatmap.size(sensitivity.to_frame())
    return _picture(partial(plot_sensitivity, sensitivity), size, "Heat map of the sensitivity scores")


def allocation_picture(allocation: Allocation) -> Picture:
    """Heat map of the ranks with its totals."""
    what = "Heat map of the ranks, layers across and projections down"
    return _picture(partial(plot_allocation, allocation), allocation_size(allocation), what)


def training_picture(run: TrainingRun) -> Picture:
    """Curves of the losses."""
    return _picture(partial(plot_training, run), (heatmap.WIDTH, 3.9), "Losses over the optimiser steps")


def rank_use_picture(use: pd.DataFrame, finding: str, detail: str) -> Picture:
    """Heat map of the share of each module's rank that its update uses."""

    @style.styled
    def draw(ax: Axes) -> Axes:
        mesh = heatmap.draw(ax, use, "use", cmap=style.SEQUENTIAL, norm=Normalize(0, 1))
        written = heatmap.write(ax, mesh, use, "used_rank", "{}", style.inches(ax))
        heatmap.colour_bar(ax, mesh, "used / given")
        style.headline(ax, finding, style.sentence("cells: directions used" if written else "", detail))
        return ax

    return _picture(draw, heatmap.size(use), "Heat map of the share of the rank that is used")


def _picture(plot: Callable[..., Axes], size: tuple[float, float], what: str) -> Picture:
    """Draw on a figure that pyplot never hears of; the alternative text ends with the picture's own headline."""
    with matplotlib.style.context(["default", SVG]):  # whatever the user has set
        figure, file = Figure(figsize=size, layout="constrained"), io.BytesIO()
        ax = plot(ax=figure.add_subplot())
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    headline = " ".join(ax.get_title(loc="left").split())
    src = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    width, height = (round(96 * inches) for inches in size)
    return Picture(src, f"{what}. {headline}.", width, height)
