"""The picture of the SpectrumExplorer: shares of the first directions together, and of each of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter, StrMethodFormatter
from mpl_toolkits.axes_grid1 import make_axes_locatable
from numpy.typing import NDArray

from viz import style
from viz.widgets.canvas import Headline, steady

POINTS = 120
"""Most points of a grey curve: directions are drawn at even distances on the logarithmic axis."""
LOWEST = 1e-8
"""Shares below are rounding."""


class SpectrumPicture:
    """Two panels on given axes that `update` brings up to a module, without making new artists.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Becomes the panel of the cumulative shares; that of the single directions takes its room from it.
    """

    @style.styled
    def __init__(self, ax: Axes) -> None:
        self.sums = ax
        self.single = make_axes_locatable(ax).append_axes("right", "78%", pad=0.75)
        colours = dict(zip(("energy", "variance"), style.colours(2), strict=True))
        grey: dict[str, Any] = {"color": "0.82", "linewidth": 0.7, "zorder": 1}
        self.others = [LineCollection([], **grey) for _ in range(2)]
        for panel, others in zip((self.sums, self.single), self.others, strict=True):
            panel.add_collection(others, autolim=False)
            _label(panel)
        cursor: dict[str, Any] = {"linewidth": 1, "linestyle": "--", "zorder": 2} | style.ink(0.7)
        self.cursors = [panel.axvline(1, **cursor) for panel in (self.sums, self.single)]
        self.lines = {
            what: [panel.plot([], [], color=c, linewidth=1.8, label=what)[0] for panel in (self.sums, self.single)]
            for what, c in colours.items()
        }
        point: dict[str, Any] = {"marker": "o", "markersize": 6, "linestyle": "none", "markeredgecolor": "white"}
        self.points = {what: self.sums.plot([], [], color=c, **point)[0] for what, c in colours.items()}
        halo = [withStroke(linewidth=3, foreground=self.sums.get_facecolor())]
        self.labels = {
            what: self.sums.annotate("", (1, 0), color=c, path_effects=halo, **_BESIDE) for what, c in colours.items()
        }
        self.sums.set_ylabel("cumulative share")
        self.sums.set_ylim(0, 1.02)
        self.sums.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 0.9, 1]))
        self.sums.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        self.single.set(yscale="log", ylabel="share of each direction")
        self.headline = Headline(ax)
        self._ink, self._paper = style.ink()["color"], self.single.get_facecolor()
        self.key: Hashable = None

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        lines = [line for pair in self.lines.values() for line in pair]
        marks = [*self.points.values(), *self.labels.values()]
        legend = self.single.get_legend()
        return [*self.others, *self.cursors, *lines, *([legend] if legend else []), *marks, *self.headline.artists]

    def update(
        self,
        kind: str,
        shares: Mapping[str, Mapping[str, NDArray[np.float64]]],
        module: str,
        everywhere: Sequence[str],
        rank: int,
    ) -> None:
        """Show a module.

        Parameters
        ----------
        kind : str
            Kind of the subspaces: with another one, the axes change.
        shares : mapping of mapping of (k,) array
            Share of each direction, by ``"energy"`` and ``"variance"`` (one or both), then by module.
        module : str
            Full module name.
        everywhere : sequence of str
            Modules to show in grey.
        rank : int
            Where the cursor stands.
        """
        if kind != self.key:
            self._fit(shares)
            self.key = kind
        for cursor in self.cursors:
            cursor.set_xdata([rank, rank])
        main = next(iter(shares))
        self.others[0].set_segments([_curve(np.cumsum(shares[main][name])) for name in everywhere if name != module])
        self.others[1].set_segments([_curve(shares[main][name]) for name in everywhere if name != module])
        sums = {what: np.cumsum(shares[what][module]) if what in shares else np.array([]) for what in self.lines}
        for what, (together, single) in self.lines.items():
            values = shares[what][module] if what in shares else np.array([])
            steps = np.arange(1, len(values) + 1)
            together.set_data(steps, sums[what])
            single.set_data(steps, np.maximum(values, LOWEST / 10))
            single.set_marker("o" if len(values) == 1 else "")
            self.points[what].set_data(([rank], [sums[what][rank - 1]]) if what in shares else ([], []))
        self._write({what: sums[what][rank - 1] for what in shares}, rank)

    def _write(self, held: Mapping[str, float], rank: int) -> None:
        """The shares beside the cursor: the higher one above its point, the lower one below."""
        left = rank > self.sums.get_xlim()[1] ** 0.6
        close = len(held) == 2 and abs(held["energy"] - held["variance"]) < 0.1
        for what, label in self.labels.items():
            share = held.get(what, 0.0)
            # The curve comes from below on the left and goes on above on the right.
            up = share < 0.93 and (share == max(held.values()) if close else left)
            label.set_text(f"{percent(share)} {what}" if what in held else "")
            label.xy = (rank, share)
            label.set(ha="right" if left else "left", va="bottom" if up else "top")
            label.set_position((-6 if left else 6, 3 if up else -3))

    def _fit(self, shares: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> None:
        """Axes that hold all modules of a kind, and a legend where there are two curves to tell apart."""
        values = [array for of_module in shares.values() for array in of_module.values()]
        longest = max(map(len, values))
        lowest = min(float(np.min(array[array > LOWEST], initial=1)) for array in values)
        highest = max(float(np.max(array)) for array in values)
        for panel in (self.sums, self.single):
            panel.set_xlim(1 / 1.1, max(longest, 2) * 1.1)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if longest <= 200 else (1, 3)))
        self.single.set_ylim(lowest / 1.5, min(1.2, 2 * highest))
        handles = [self.lines[what][1] for what in self.lines if what in shares]
        look: dict[str, Any] = {"frameon": True, "facecolor": self._paper, "edgecolor": "none", "framealpha": 1}
        self.single.legend(handles=handles, loc="upper right", fontsize=8.5, labelcolor=self._ink, **look)


_BESIDE: dict[str, Any] = {
    "xytext": (7, 0), "textcoords": "offset points", "fontsize": 9.5, "zorder": 5,
}  # fmt: skip


def percent(share: float) -> str:
    """A share in percent; 100 % is only what rounds to it at one decimal."""
    return f"{100 * share:.1f} %" if 0.99 < share < 0.9995 else style.percent(share)


def _label(panel: Axes) -> None:
    """A logarithmic axis of directions with plain numbers."""
    panel.set(xscale="log", xlabel="direction")
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    style.guide_lines(panel)
    steady(panel)


def _curve(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) of a thinned curve."""
    kept = np.unique(np.geomspace(1, len(values), POINTS).round().astype(int))
    return np.column_stack([kept, np.maximum(values[kept - 1], LOWEST / 10)])
