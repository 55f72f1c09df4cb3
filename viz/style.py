"""What all pictures share: fresh axes, colours, labels of layers and projections, numbers in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import cycle, islice
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, ScalarFormatter

from tlora.results import Meta
from tlora.utils.validation import check_type

P = ParamSpec("P")
T = TypeVar("T")

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.usetex": False,
}
"""Settings under which pictures are drawn; put back when a picture is done."""

PAPER: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "black",
    "axes.labelcolor": "black",
    "axes.titlecolor": "auto",
    "axes.grid": False,
    "legend.labelcolor": "None",
    "text.color": "black",
    "xtick.color": "black",
    "ytick.color": "black",
}
"""Colours of a picture on paper of its own, whatever style is set: its greys are made for white. On axes of the user's
own, theirs stay."""

SEQUENTIAL: Colormap = plt.get_cmap("viridis")
DIVERGING: Colormap = sns.color_palette("vlag", as_cmap=True)
"""Blue below, white at, red above: told apart under the common colour-vision deficiencies."""

LONGEST = 40
"""Characters of a label beside the axes."""

MISSING = "0.88"
"""Grey of a cell for which there is no module."""


class Paper(Figure):
    """A figure of a widget's own, white whatever style is set."""


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Draw under `STYLE` and leave matplotlib's settings as they were."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        # No rc_context, which would also undo what a backend sets that starts with the first picture: in Jupyter the
        # pictures after it would not be shown.
        settings: Any = plt.rcParams
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Axes)), None)
        ours = STYLE | PAPER if given is None or isinstance(figure_of(given), Paper) else STYLE
        before = {name: settings[name] for name in ours}
        settings.update(ours)
        try:
            return plot(*args, **kwargs)
        finally:
            settings.update(before)

    return drawn


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """``ax``, or the axes of a new figure of ``width`` by ``height`` inches.

    Raises
    ------
    TypeError
        If ``ax`` is not a matplotlib Axes.
    """
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    return check_type(ax, Axes, "one Axes, e.g. the second value of plt.subplots()")


def figure_of(ax: Axes) -> Figure:
    """The figure that all of it is on."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def inches(ax: Axes) -> float:
    """Width of the axes as they stand; a layout that comes later may change it a little."""
    return float(ax.bbox.width / figure_of(ax).dpi)


def ink(strength: float = 1.0) -> dict[str, Any]:
    """Look of a line or a text: the colour of texts on this paper, black or grey on white, and light on dark."""
    return {"color": plt.rcParams["text.color"], "alpha": strength}


def guide_lines(ax: Axes) -> None:
    """Faint lines across at the ticks of the y axis, behind everything."""
    ax.set_axisbelow(True)
    ax.grid(axis="y", linewidth=0.7, **ink(0.1))


def colours(count: int) -> list[tuple[float, float, float]]:
    """Colour-blind safe colours for ``count`` lines; from the eleventh on they repeat, dashed."""
    return list(sns.color_palette("colorblind", count))


def dashes(count: int) -> list[str]:
    """Line styles that go with `colours`: solid for the first ten, then dashed, then dotted."""
    return [("-", "--", ":")[min(i // 10, 2)] for i in range(count)]


def markers(count: int) -> list[str]:
    """Shapes of the points that go with `colours`: where lines meet, these tell them apart."""
    return list(islice(cycle("os^DvPX"), count))


def projections(frame: pd.DataFrame) -> list[str]:
    """The projections in the order in which a block runs through them (that of the frame's rows)."""
    return list(dict.fromkeys(frame["projection"]))


def layers(frame: pd.DataFrame) -> list[int]:
    """The layers that there are, in order."""
    return sorted(int(layer) for layer in frame["layer"].unique())


def fitting(handles: Sequence[Artist], most: int) -> list[Artist]:
    """Entries of a legend that has room for so many; the last one says how many more there are."""
    rest = len(handles) - most + 1
    more = Patch(facecolor="none", linewidth=0, label=f"and {rest} more")
    return [*handles[: most - 1], more] if rest > 1 else list(handles)


def plain_numbers() -> ScalarFormatter:
    """Numbers of an axis as they are, without a power or a constant beside the axis that belongs to all."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def layer_axis(ax: Axes, frame: pd.DataFrame, columns: bool = False) -> None:
    """Label the x axis as layers: whole numbers, thinned to what fits; of single layers each that is there.

    With ``columns`` a layer is drawn at its place among those that there are, from 0 on, and not at its number.
    """
    there = layers(frame)
    places = list(range(len(there))) if columns else there
    ax.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    few = len(there) <= min(16, 2.4 * inches(ax)) and there[-1] - there[0] >= len(there)
    ax.xaxis.set_major_locator(FixedLocator(places) if few else whole_numbers(inches(ax)))
    if columns:
        ax.xaxis.set_major_formatter(lambda x, _: str(there[int(x)]) if 0 <= x < len(there) else "")
    ax.set_xlabel("layer")


def whole_numbers(room: float) -> MaxNLocator:
    """Ticks at whole numbers, as many as have room in these inches."""
    nbins = min(16, max(2, int(2.4 * room)))
    return MaxNLocator(nbins=nbins, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def cut(label: str) -> str:
    """A label as it is written beside the axes: of a long one its end, which tells modules apart."""
    return label if len(label) <= LONGEST else f"…{label[1 - LONGEST :]}"


def place(row: pd.Series) -> str:
    """Where a module is, in words: ``"layer 3 q_proj"``."""
    return f"layer {row['layer']} {row['projection']}"


def joined(labels: Iterable[str]) -> str:
    """Labels on one line, what they begin with said once: ``"encoder.q, k, v"``."""
    parts: list[str] = []
    before = ""
    for label in dict.fromkeys(labels):
        head, dot, tail = label.rpartition(".")
        parts.append(tail if dot and head == before else label)
        before = head
    return ", ".join(parts)


def headline(ax: Axes, finding: str, detail: str = "", lift: float = 0.0) -> None:
    """Say above the axes what the picture shows, and in a second, grey line how much and of what.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to write; both texts are broken into lines that fit its width.
    finding : str
        Becomes the title of the axes.
    detail : str
        Becomes the grey lines below it.
    lift : float
        Inches between the axes and the text, for what stands on top of the axes.
    """
    figure = figure_of(ax)
    if engine := figure.get_layout_engine():
        engine.execute(figure)  # leaves the axes as wide as they will be
    width = inches(ax)
    lines = textwrap.wrap(detail, max(24, int(15 * width)))
    title = "\n".join(textwrap.wrap(finding, max(20, int(13 * width))))
    # a name of the user's may hold dollar signs that are not a formula
    ax.set_title(title, loc="left", pad=72 * lift + 7 + 12 * len(lines), parse_math=False)
    ax.annotate(
        "\n".join(lines), (0, 1), (0, 72 * lift + 5), xycoords="axes fraction", textcoords="offset points",
        va="bottom", fontsize=8.5, linespacing=1.15, annotation_clip=False, parse_math=False, **ink(0.6),
    )  # fmt: skip


def source(meta: Meta) -> str:
    """Where a result comes from, in words: ``"smollm2-135m, family_relationships, 32 samples"``."""
    samples = f"{meta.samples}\u00a0samples" if meta.samples else ""  # kept on one line
    return ", ".join(part for part in (PurePath(meta.model).name, meta.task, samples) if part)


def sentence(*parts: str) -> str:
    """The parts that are not empty, set apart by dots."""
    return "  ·  ".join(part for part in parts if part)


def number(value: float) -> str:
    """Two or three significant digits, thousands written out: ``"0.0123"``, ``"9.5"``, ``"1,230"``."""
    if 999.5 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 or 1e-4 <= abs(value) < 1 else f"{value:.2g}"


def percent(share: float) -> str:
    """A share in percent, two significant digits below 10: ``"3.1 %"``, ``"42 %"``."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 or value == 0 else f"{value:.2g} %"
