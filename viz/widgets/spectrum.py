"""SpectrumExplorer: how much the first directions of a module hold, for every kind of subspace."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from mpl_toolkits.axes_grid1 import make_axes_locatable
from numpy.typing import NDArray

from tlora.calibration.calibration import Calibration
from tlora.calibration.spectrum import Spectrum, directions_for
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import positive_int
from viz import style
from viz.widgets.base import WIDTH, Explorer, choice, row, stack, table
from viz.widgets.canvas import Headline, steady

Source = Spectrum | Subspaces | Calibration
Shares = Mapping[str, Mapping[str, NDArray[np.float64]]]
ENERGY, VARIANCE = "energy", "variance"
MEANINGS = {
    "covariance": "Principal directions of the inputs",
    "wc": "TLoRA: right singular vectors of W C",
    "w": "Right singular vectors of W, as in PiSSA",
    "c": "Principal directions of the inputs, as in EVA",
    "wc_half": "Right singular vectors of W C^(1/2)",
    "g": "Of the mean gradient, as in LoRA-GA",
    "g_whitened": "Of the mean gradient, whitened by the inputs",
    "random": "A random space, as in LoRA-FA",
}


POINTS = 120
"""Most points of a grey curve: directions are drawn at even distances on the logarithmic axis."""
LOWEST = 1e-8
"""Shares below are rounding."""


_BESIDE: dict[str, Any] = {
    "xytext": (7, 0), "textcoords": "offset points", "fontsize": 9.5, "zorder": 5,
}  # fmt: skip


@dataclass(frozen=True)
class SpectrumState:
    """Which module is looked at, through which kind, and where the rank cursor stands."""

    layer: int
    projection: str
    kind: str
    rank: int


@dataclass(frozen=True)
class SpectrumReading:
    """What the first ``rank`` directions of a module hold.

    Attributes
    ----------
    module : str
        Full module name.
    rank : int
        Directions taken: the cursor's, or all that are known where these are fewer.
    directions : int
        How many are known.
    held : dict of float
        By ``"energy"`` (share of the squared singular values of the kind's own matrix) and ``"variance"`` (share
        of the variance of the inputs), where each is known.
    needed : dict of dict of float
        By the same, how many directions hold 0.9, 0.95 and 0.99; NaN where those known do not.
    """

    module: str
    rank: int
    directions: int
    held: dict[str, float]
    needed: dict[str, dict[float, float]]


class SpectrumExplorer(Explorer[SpectrumState, SpectrumReading]):
    """A module, a kind of subspace and a rank cursor, with the energy and the variance that the rank holds.

    Parameters
    ----------
    *sources : Spectrum, Subspaces or Calibration
        One of each kind to look at, all of the same modules. A calibration is decomposed once, here; nothing is
        decomposed when a control moves.
    rank : int
        Where the cursor stands to begin with.

    Raises
    ------
    TypeError
        If a source is something else.
    ValueError
        If there is no source, two of one kind, or sources of different modules; if the rank is below 1.
    """

    def __init__(self, *sources: Source, rank: int = 8) -> None:
        if not sources:
            raise ValueError("nothing to explore: pass a Spectrum, a Calibration or Subspaces")
        rank = positive_int(rank, "rank")
        self._shares: dict[str, Shares] = {}  # by kind
        self._whole: dict[str, bool] = {}  # whether the energies are shares of all of it
        spectra = [_spectrum(source) for source in sources]
        for source in spectra:
            if source.kind in self._shares:
                raise ValueError(f"two sources are of kind {source.kind!r}: pass one of each kind")
            if list(source.layers) != list(spectra[0].layers):
                raise ValueError("the sources are of different modules: pass results of one calibration")
            self._shares[source.kind] = shares_of(source)
            self._whole[source.kind] = isinstance(source, Spectrum) and bool(
                np.isfinite([*source.traces.values()]).all()
            )
        first = spectra[0]
        self._meta, self._layers, self._projections = first.meta, first.layers, first.projections
        name = next(iter(first.layers))
        self._most = max(
            len(values) for shares in self._shares.values() for values in next(iter(shares.values())).values()
        )
        rank = min(rank, self._most)
        super().__init__(SpectrumState(first.layers[name], first.projections[name], first.kind, rank))
        self._build()
        self._answer_while_busy()
        self._refresh()

    def result(self, state: SpectrumState) -> SpectrumReading:
        """What the first directions of the module in ``state`` hold."""
        module = self._module(state)
        shares = {what: values[module] for what, values in self._shares[state.kind].items()}
        cumulative = {what: np.cumsum(values) for what, values in shares.items()}
        directions = len(next(iter(shares.values())))
        rank = min(state.rank, directions)
        return SpectrumReading(
            module=module,
            rank=rank,
            directions=directions,
            held={what: float(sums[rank - 1]) for what, sums in cumulative.items()},
            needed={
                what: {at: directions_for(sums, at) for at in (0.9, 0.95, 0.99)} for what, sums in cumulative.items()
            },
        )

    def render(self, state: SpectrumState, ax: Axes) -> Axes:
        """Draw a state.

        Parameters
        ----------
        state : SpectrumState
            For example ``explorer.state``.
        ax : matplotlib.axes.Axes
            Where to draw; the second panel takes its room from it.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the cumulative shares.
        """
        self._update(SpectrumPicture(ax), state, self.result(state))
        return ax

    @property
    def line(self) -> str:
        """What is shown in one line of text."""
        return f"{self._finding(self.state, self._result)}: {self._result.module}, kind {self.state.kind}"

    def _module(self, state: SpectrumState) -> str:
        for name, layer in self._layers.items():
            if (layer, self._projections[name]) == (state.layer, state.projection):
                return name
        layers = [layer for name, layer in self._layers.items() if self._projections[name] == state.projection]
        raise ValueError(
            f"layer {state.layer} has no {state.projection}: it is in the layers {min(layers)} to {max(layers)}"
        )

    def _build(self) -> None:
        layers = sorted(set(self._layers.values()))
        kinds = list(self._shares)
        projections = list(dict.fromkeys(self._projections.values()))
        wide: dict[str, Any] = {"layout": {"width": "390px"}}
        self._watch(
            layer=ipywidgets.SelectionSlider(options=layers, value=self.state.layer, description="Layer", **wide),
            projection=ipywidgets.Dropdown(
                options=projections, value=self.state.projection, description="Projection", **wide
            ),
            kind=choice("Kind", kinds, self.state.kind, [MEANINGS.get(kind, kind) for kind in kinds]),
        )
        self.controls["rank"] = ipywidgets.FloatLogSlider(
            self.state.rank, min=0, max=math.log10(max(self._most, 2)), step=0.01, readout_format=".0f",
            description="Rank", **wide,
        )  # fmt: skip
        self.controls["rank"].observe(lambda change: self._ask(rank=round(change["new"])), "value")
        rows = [("layer", "projection"), ("rank", "kind")]
        self.summary = ipywidgets.HTML()
        above = [row(*(self.controls[name] for name in names)) for names in rows]
        self.widget = stack(*above, self.message, self.image, self.summary)
        self._canvas = self._paper(WIDTH, 3.4)
        self._drawn = SpectrumPicture(self._canvas.axes(0.75, 0.15, 0.45, 0.55))

    def _refresh(self) -> None:
        self._update(self._drawn, self.state, self._result)
        self.image.value = self._canvas.png(self._drawn.moving, self._drawn.key)
        held, needed = self._result.held, self._result.needed
        known = "" if self._whole[self.state.kind] else f" of the {self._result.directions} known directions"
        words = {ENERGY: f"energy{known}", VARIANCE: "variance of the inputs"}
        heads = [f"first {self._result.rank}", "for 90 %", "for 95 %", "for 99 %"]
        lines = []
        for what, share in held.items():
            enough = ["more than known" if np.isnan(count) else f"{count:g}" for count in needed[what].values()]
            lines.append([words[what], percent(share), *enough])
        self.summary.value = table(["share of", *heads], lines)

    def _update(self, picture: SpectrumPicture, state: SpectrumState, reading: SpectrumReading) -> None:
        everywhere = [n for n, projection in self._projections.items() if projection == state.projection]
        picture.update(state.kind, self._shares[state.kind], reading.module, everywhere, reading.rank)
        picture.headline.write(
            f"Layer {state.layer} {state.projection}: {self._finding(state, reading, 'the')}",
            MEANINGS.get(state.kind, state.kind),
            f"grey: {state.projection} of the other layers" if len(everywhere) > 1 else "",
            style.source(self._meta),
        )

    def _finding(self, state: SpectrumState, reading: SpectrumReading, the: str = "The") -> str:
        known = "" if self._whole[state.kind] else "known "  # of truncated subspaces
        words = {ENERGY: f"{known}energy", VARIANCE: "variance"}
        held = " and ".join(f"{percent(share)} of the {words[what]}" for what, share in reading.held.items())
        directions = (
            f"{the} first direction holds" if reading.rank == 1 else f"{the} first {reading.rank} directions hold"
        )
        return f"{directions} {held}"


def _spectrum(source: Source) -> Spectrum | Subspaces:
    if isinstance(source, Calibration):
        return source.spectrum()
    if not isinstance(source, Spectrum | Subspaces):
        raise TypeError(f"a source is a {type(source).__name__}: pass a Spectrum, a Calibration or Subspaces")
    return source


def shares_of(source: Spectrum | Subspaces) -> Shares:
    """Share of each direction: of the matrix's own energy, and of the variance of the inputs."""
    if isinstance(source, Spectrum):
        return {VARIANCE if source.kind in ("covariance", "c") else ENERGY: _of_spectrum(source)}
    variance = {name: v.double().numpy() / (source.traces[name] or math.inf) for name, v in source.row_variance.items()}
    if source.kind in ("c", "random"):
        return {VARIANCE: variance}
    return {ENERGY: _of_spectrum(source.spectrum()), VARIANCE: variance}


def _of_spectrum(spectrum: Spectrum) -> dict[str, NDArray[np.float64]]:
    once = {name: spectrum.curves([name])["share"].to_numpy() for name in dict.fromkeys(spectrum.inputs.values())}
    return {name: once[source] for name, source in spectrum.inputs.items()}


class SpectrumPicture:
    """Two panels on given axes that `update` brings up to a module, without making new artists.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Becomes the panel of the cumulative shares.
    single : matplotlib.axes.Axes, optional
        The panel of the single directions; when left out, it takes its room from ``ax``.
    """

    @style.styled
    def __init__(self, ax: Axes, single: Axes | None = None) -> None:
        self.sums = ax
        self.single = single or make_axes_locatable(ax).append_axes("right", "78%", pad=0.75)
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
        self.single.yaxis.set_minor_formatter(NullFormatter())
        self.headline = Headline(ax)
        self.key: Hashable = None

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        lines = [line for pair in self.lines.values() for line in pair]
        marks = [*self.points.values(), *self.labels.values()]
        return [*self.others, *self.cursors, *lines, *marks, *self.headline.artists]

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
            Where the cursor stands; at 0 there is none.
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
            self.points[what].set_data(([rank], [sums[what][rank - 1]]) if rank and what in shares else ([], []))
        self._write({what: sums[what][rank - 1] for what in shares if rank}, rank)

    def _write(self, held: Mapping[str, float], rank: int) -> None:
        """The shares beside the cursor: the higher one above its point, the lower one below."""
        left = rank > self.sums.get_xlim()[1] ** 0.6
        points = self.sums.get_window_extent().height * 72 / self.sums.figure.dpi
        close = len(held) == 2 and points * abs(held["energy"] - held["variance"]) < 3 * _BESIDE["fontsize"]
        for what, label in self.labels.items():
            share = held.get(what, 0.0)
            # The curve comes from below on the left and goes on above on the right; the axis is below.
            up = share < 0.15 or (share < 0.93 and (share == max(held.values()) if close else left))
            label.set_text(f"{percent(share)} {what}" if what in held else "")
            label.xy = (rank, share)
            label.set(ha="right" if left else "left", va="bottom" if up else "top")
            label.set_position((-6 if left else 6, 3 if up else -3))

    def _fit(self, shares: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> None:
        """Axes that hold all modules of a kind."""
        values = [array for of_module in shares.values() for array in of_module.values()]
        longest = max(map(len, values))
        lowest = min(float(np.min(array[array > LOWEST], initial=1)) for array in values)
        highest = max(float(np.max(array)) for array in values)
        for panel in (self.sums, self.single):
            panel.set_xlim(1 / 1.1, max(longest, 2) * 1.1)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if longest <= 200 else (1, 3)))
        self.single.set_ylim(lowest / 1.5, min(1.2, 2 * highest))


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
    kept = _kept(len(values))
    return np.column_stack([kept, np.maximum(values[kept - 1], LOWEST / 10)])


@lru_cache
def _kept(count: int) -> NDArray[np.intp]:
    """The directions of a thinned curve, from 1 on."""
    return np.unique(np.geomspace(1, count, POINTS).round().astype(int))
