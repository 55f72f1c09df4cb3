"""What all pictures share: fresh axes, colors, labels of layers and projections, numbers in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import cycle, islice
from pathlib import PurePath
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, ScalarFormatter, StrMethodFormatter

from tlora.results import Meta

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
"""Settings under which pictures are drawn; the user's are restored afterwards."""

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
"""Colors of a new figure, whatever style is set: the grays are made for white. Axes of the user's own keep theirs."""

SEQUENTIAL: Colormap = plt.get_cmap("viridis")
DIVERGING: Colormap = sns.color_palette("vlag", as_cmap=True)
"""Blue below, white at, red above: distinct under the common color-vision deficiencies."""

COLORS = (
    "#00785a", "#b35f00", "#7b3fb5", "#c9569e", "#6b4a2b", "#2a9d9d", "#8a8a00", "#8a8a8a", "#e0a458", "#333333",
)  # fmt: skip
"""Colors of lines, dark enough for their names on white. Red and blue are left to more and less, see `DIVERGING`."""

NAMED, LISTED = 3, 18
"""Most lines with their names at their ends, and most entries of a legend."""
LINE_HEIGHT = 13
"""Points between the names of two lines."""

LONGEST = 40
"""Most characters of a label next to the axes."""

MISSING = "0.88"
"""Gray of a cell that has no module."""

MINUS, DASH = "\u2212", "\u2013"
"""A minus sign, and what stands for a missing number."""


class Paper(Figure):
    """A figure of a widget's own, white whatever style is set."""


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Draw under `STYLE` and leave matplotlib's settings unchanged."""

    @wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        # Not rc_context: it would also undo what a backend sets when it starts with the first picture, and Jupyter
        # would not show the pictures after it.
        settings: Any = plt.rcParams
        axes = next((value for value in (*args, *kwargs.values()) if isinstance(value, Axes)), None)
        ours = STYLE | PAPER if axes is None or isinstance(figure_of(axes), Paper) else STYLE
        before = {name: settings[name] for name in ours}
        settings.update(ours)
        try:
            return plot(*args, **kwargs)
        finally:
            settings.update(before)

    return draw


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """``ax``, or the axes of a new figure of ``width`` by ``height`` inches."""
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    return ax


def figure_of(ax: Axes) -> Figure:
    """The whole figure that these axes are on."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def inches(ax: Axes) -> float:
    """Width of the axes at present; a later layout may change it a little."""
    return float(ax.bbox.width / figure_of(ax).dpi)


def ink(strength: float = 1.0) -> dict[str, Any]:
    """Look of a line or a text: the text color of the figure, dark on white and light on dark."""
    return {"color": plt.rcParams["text.color"], "alpha": strength}


def guide_lines(ax: Axes) -> None:
    """Draw faint horizontal lines at the ticks of the y axis, behind everything."""
    ax.set_axisbelow(True)
    ax.grid(axis="y", linewidth=0.7, **ink(0.1))


def colors(count: int) -> list[tuple[float, float, float]]:
    """Colors for ``count`` lines; from the eleventh on they repeat, see `dashes`."""
    return [to_rgb(color) for color in islice(cycle(COLORS), count)]


def dashes(count: int) -> list[str]:
    """Line styles that go with `colors`: solid for the first ten, then dashed, then dotted."""
    return [("-", "--", ":")[min(i // 10, 2)] for i in range(count)]


def markers(count: int) -> list[str]:
    """Shapes of the points that go with `colors`, so that lines that meet stay distinct."""
    return list(islice(cycle("os^DvPX"), count))


def ink_on(face: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast on a color: by the luminance of WCAG 2, as in the browser."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in face[:3]]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def name_lines(ax: Axes, names: Mapping[Any, str] | None = None, above: bool = False) -> None:
    """Write the names of up to three lines at their ends; of more, draw a legend next to the axes.

    ``names`` are those of what was drawn, by default its labels. With ``above``, for lines that end at one point, each
    is above its line, where there is most room.
    """
    if names is None:
        names = dict(zip(*ax.get_legend_handles_labels(), strict=True))
    if len(names) > NAMED:
        _draw_legend(ax, names)
        return
    lines = [getattr(drawn, "lines", [drawn])[0] for drawn in names]  # of an error bar, its line
    look: dict[str, Any] = {
        "fontsize": 8.5,
        "textcoords": "offset points",
        "annotation_clip": False,
        "parse_math": False,
    }
    if above:
        for line, name, place in zip(lines, names.values(), _roomiest(ax, lines), strict=True):
            ax.annotate(name, place, (2, 3), color=line.get_color(), **look)
        return
    ax.autoscale_view()  # else the ends would be those of the limits before
    in_axes = ax.transData + ax.transAxes.inverted()
    ends = np.array([in_axes.transform(line.get_xydata()[-1]) for line in lines]).reshape(-1, 2)
    height = 72 * ax.bbox.height / figure_of(ax).dpi
    sizes = [LINE_HEIGHT * len(name.splitlines()) / height for name in names.values()]
    look |= {"xycoords": "axes fraction", "va": "center"}
    for line, name, x, y in zip(lines, names.values(), ends[:, 0], spread(ends[:, 1].tolist(), sizes), strict=True):
        ax.annotate(name, (x, y), (7, 0), color=line.get_color(), **look)


def _roomiest(ax: Axes, lines: Sequence[Any]) -> list[tuple[float, float]]:
    """A point on each line that has most room above it and as far to the right as a name is long."""
    low, high = ax.get_xlim()
    across = np.linspace(low, high, 41)[1:]
    heights = np.array([np.interp(across, *line.get_xydata().T) for line in lines])
    window = len(across) // 3
    places = []
    for height in heights:
        rest = np.where(heights > height, heights, ax.get_ylim()[1])  # what is above, at least the end of the axis
        room = np.lib.stride_tricks.sliding_window_view(rest.min(0) - height, window).min(1)
        best = int(room.argmax())
        places.append((float(across[best]), float(height[best])))
    return places


def spread(centers: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centers moved apart, so that what has these sizes does not overlap between 0 and 1; their order stays."""
    moved = [float(center) for center in centers]
    order = np.argsort(moved, kind="stable").tolist()
    edge = 0.0
    for i in order:
        moved[i] = max(moved[i], edge + sizes[i] / 2)
        edge = moved[i] + sizes[i] / 2
    edge = 1.0
    for i in reversed(order):
        moved[i] = min(moved[i], edge - sizes[i] / 2)
        edge = moved[i] - sizes[i] / 2
    return moved


def _draw_legend(ax: Axes, names: Mapping[Any, str]) -> None:
    """Draw a legend next to the axes; entries that do not fit are counted."""
    drawn, labels = list(names), list(names.values())
    if len(drawn) > LISTED:
        rest = len(drawn) - LISTED + 1
        drawn, labels = [*drawn[:-rest], Patch(facecolor="none", linewidth=0)], [*labels[:-rest], f"and {rest} more"]
    ax.legend(drawn, labels, loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=1.9)


def projections(frame: pd.DataFrame) -> list[str]:
    """The projections in the order in which a block runs through them (that of the frame's rows)."""
    return list(dict.fromkeys(frame["projection"]))


def layers(frame: pd.DataFrame) -> list[int]:
    """The layers of the frame, in order."""
    return sorted(int(layer) for layer in frame["layer"].unique())


def plain_numbers() -> ScalarFormatter:
    """Full numbers on an axis, without a common factor or offset."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def logarithmic(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10 ..."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log"})
    plain_logarithm(axis)
    low, high = axis.get_view_interval()
    if high <= 5 * low:
        axis.set_major_locator(MaxNLocator(5))


def plain_logarithm(axis: Axis) -> None:
    """Write plain numbers at 1, 2, 5, 10 ... of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def loss_axis(ax: Axes, label: str) -> None:
    """Label the y axis of the losses drawn so far: logarithmic if they span more than a factor of ten."""
    low, high = ax.dataLim.intervaly
    ax.set_ylabel(label)
    ax.yaxis.set_major_formatter(plain_numbers())
    if 0 < low < high / 10:
        logarithmic(ax, "y")
    guide_lines(ax)


def layer_axis(ax: Axes, frame: pd.DataFrame, columns: bool = False) -> None:
    """Label the x axis as layers: whole numbers, thinned to what fits; each layer if some are missing.

    With ``columns`` a layer is drawn at its position among the layers of the frame, from 0 on, not at its number.
    """
    present = layers(frame)
    places = list(range(len(present))) if columns else present
    ax.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    few = len(present) <= min(16, 2.4 * inches(ax)) and present[-1] - present[0] >= len(present)
    ax.xaxis.set_major_locator(FixedLocator(places) if few else whole_numbers(inches(ax)))
    if columns:
        ax.xaxis.set_major_formatter(lambda x, _: str(present[int(x)]) if 0 <= x < len(present) else "")
    ax.set_xlabel("layer")


def whole_numbers(room: float) -> MaxNLocator:
    """Ticks at whole numbers, as many as fit into these inches."""
    nbins = min(16, max(2, int(2.4 * room)))
    return MaxNLocator(nbins=nbins, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def cut(label: str) -> str:
    """A label as it is written next to the axes: only the end of a long one, in which modules differ."""
    return label if len(label) <= LONGEST else f"…{label[1 - LONGEST :]}"


def place(row: pd.Series) -> str:
    """The place of a module in words: ``"layer 3 q_proj"``."""
    return f"layer {row['layer']} {row['projection']}"


def join_labels(labels: Iterable[str]) -> str:
    """Labels on one line, with a common beginning written once: ``"encoder.q, k, v"``."""
    parts: list[str] = []
    before = ""
    for label in dict.fromkeys(labels):
        head, dot, tail = label.rpartition(".")
        parts.append(tail if dot and head == before else label)
        before = head
    return ", ".join(parts)


def headline(ax: Axes, finding: str, detail: str = "", lift: float = 0.0) -> None:
    """Write the finding as the title of the axes, and in gray below it the detail, both wrapped to their width.

    ``lift`` are the inches between the axes and the text, for panels on top of the axes.
    """
    figure = figure_of(ax)
    if engine := figure.get_layout_engine():
        engine.execute(figure)  # gives the axes their final width
    width = inches(ax)
    lines = textwrap.wrap(detail, max(24, int(15 * width)))
    title = "\n".join(textwrap.wrap(finding, max(20, int(13 * width))))
    # dollar signs in a user's name are not a formula
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
    """Two or three significant digits, thousands with commas: ``"0.0123"``, ``"9.5"``, ``"1,230"``; a dash for NaN."""
    if value != value:
        return DASH
    if 999.5 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 or 1e-4 <= abs(value) < 1 else f"{value:.2g}"


def signed(value: float) -> str:
    """A number with its sign: ``"+4.58"``, ``"−0.31"``, ``"0"``."""
    return ("+" if value > 0 else MINUS if value < 0 else "") + number(abs(value))


def whole(value: float) -> str:
    """A whole number, thousands with commas; a dash for NaN."""
    return DASH if value != value else f"{int(value):,}"


def percent(share: float) -> str:
    """A share in percent, two significant digits below 10: ``"3.1 %"``, ``"42 %"``; a dash for NaN."""
    if share != share:
        return DASH
    value = 100 * share
    half_up = math.floor(value + 0.5)  # as the browser rounds, so that picture and panel agree
    return f"{half_up} %" if abs(value) >= 9.95 or value == 0 else f"{value:.2g} %"
