"""ModulePicture: what is known of one module, beside the map of the workbench."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from tlora.calibration.sensitivity import Sensitivity
from tlora.subspaces.subspaces import Subspaces
from viz import style
from viz.widgets.canvas import Canvas, boxes, place_boxes, steady
from viz.widgets.spectrum import SpectrumPicture, shares_of

WIDTH = 3.4
"""Inches."""
LINE = 0.17
"""Inches of a line of the legend."""
SHARES = {"captured": "gradient captured", "overlap": "overlap, other task", "neighbours": "overlap, next layers"}
"""Curves of the second panel, and what they are called."""


class ModulePicture:
    """The spectrum with a cursor at the rank, shares by rank, and the ranks from resampled scores.

    Parameters
    ----------
    curves : mapping of list
        Shares by rank from 1 on of every module, in model order.
    sensitivity : Sensitivity
        Names the modules.
    subspaces : Subspaces or None
        Whose spectra are shown.
    most : int
        Largest rank.
    """

    def __init__(
        self, curves: Mapping[str, Any], sensitivity: Sensitivity, subspaces: Subspaces | None, most: int
    ) -> None:
        self.curves = {what: curves[what] for what in SHARES if what in curves}
        self.names, self.projections = sensitivity.names, sensitivity.projections
        self.kind = None if subspaces is None else subspaces.kind
        self.shares = {} if subspaces is None else shares_of(subspaces)
        self.most, self.resampled = most, len(sensitivity.per_sample) > 1
        heights = ([1.35, 0.95] if self.shares else []) + [0.75] * (bool(self.curves) + self.resampled)
        self.canvas = Canvas(WIDTH, sum(heights) + 0.5 * len(heights) + LINE * len(self.curves) or 1)
        self._bottom = self.canvas.figure.get_size_inches()[1]
        if self.shares:
            self.spectrum = SpectrumPicture(self._panel(1.35), self._panel(0.95))
            self.spectrum.single.set_ylabel("each direction")
        self._draw_curves()
        self._draw_distribution()

    def _panel(self, height: float, above: float = 0.0) -> Any:
        """Axes below the last ones, with room above for a legend: inches."""
        top = self.canvas.figure.get_size_inches()[1] - self._bottom + 0.08 + above
        self._bottom -= height + 0.5 + above
        return self.canvas.axes(0.66, 0.1, self._bottom + 0.42, top)

    @style.styled
    def _draw_curves(self) -> None:
        self.lines: dict[str, Any] = {}
        if not self.curves:
            return
        panel = self._panel(0.75, LINE * len(self.curves))
        for what, colour in zip(self.curves, style.colours(5)[2:], strict=False):
            self.lines[what] = panel.plot([], [], color=colour, linewidth=1.8, label=SHARES[what])[0]
        self.cursor = panel.axvline(1, linewidth=1, linestyle="--", **style.ink(0.7))
        panel.set(xlim=(0, self.most + 1), ylim=(0, 1.02), xlabel="rank", ylabel="share")
        panel.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        tight = {"borderaxespad": 0.1, "borderpad": 0, "labelspacing": 0.2}
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8.5, **tight)
        style.guide_lines(panel)
        steady(panel)

    @style.styled
    def _draw_distribution(self) -> None:
        if not self.resampled:
            return
        panel = self._panel(0.75)
        self.bars = boxes(panel, facecolor="0.6", linewidth=0, zorder=2)
        self.here = panel.axvline(1, linewidth=1, linestyle="--", zorder=3, **style.ink(0.7))
        self.note = panel.text(0.98, 0.92, "", transform=panel.transAxes, ha="right", va="top", fontsize=8.5)
        panel.set(ylim=(0, 1.02), xlabel="rank from resampled scores", ylabel="resamples")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        steady(panel)

    @property
    def _moving(self) -> list[Artist]:
        moving = list(self.spectrum.moving) if self.shares else []
        moving += [self.cursor, *self.lines.values()] if self.lines else []
        return moving + ([self.bars, self.here, self.note] if self.resampled else [])

    def png(self, name: str, rank: int, resampled: np.ndarray | None) -> bytes:
        """The picture of a module as PNG bytes.

        Parameters
        ----------
        name : str
            Full module name.
        rank : int
            Where the cursor stands; 0 where the module is left out.
        resampled : (R,) int array or None
            Ranks from resamples, where they are known.
        """
        if self.shares and self.kind is not None:
            everywhere = [n for n in self.names if self.projections[n] == self.projections[name]]
            known = len(next(iter(self.shares.values()))[name])
            self.spectrum.update(self.kind, self.shares, name, everywhere, min(rank, known))
        for what, line in self.lines.items():
            values = self.curves[what][self.names.index(name)]
            line.set_data(np.arange(1, len(values) + 1), values)
            self.cursor.set_xdata([rank, rank])
        far = 0
        if self.resampled:
            ranks, counts = np.unique([] if resampled is None else resampled, return_counts=True)
            place_boxes(self.bars, ranks - 0.4, ranks + 0.4, 0, counts / max(counts.sum(), 1))
            self.here.set_xdata([rank, rank])
            self.note.set_text(f"{ranks[0]:.0f} to {ranks[-1]:.0f}" if len(ranks) else "" if rank else "left out")
            far = _round_up(max([rank, *ranks]))
            self.here.axes.set_xlim(0, far)
        return self.canvas.png(self._moving, (self.spectrum.key if self.shares else None, far))


def _round_up(rank: float) -> int:
    """The end of an axis of ranks: 8, 16, 32 ..., so that it stays as it is while a rank changes a little."""
    return 2 ** max(3, math.ceil(math.log2(1.02 * max(rank, 1))))
