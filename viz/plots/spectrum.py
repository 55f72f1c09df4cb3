"""Picture of a Spectrum: how many directions the input of each module uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from tlora.calibration.spectrum import Spectrum, select_modules
from tlora.models.experts import is_expert, parameter_name
from tlora.utils.validation import check_arguments
from viz import style

View = Literal["variance", "eigenvalues", "effective_rank"]
LINES = 10
"""Most inputs that get a curve each; more are summarized by projection."""
POINTS = 150
"""Most points of a curve: directions are drawn at even distances on the logarithmic axis."""


@style.styled
def plot_spectrum(
    spectrum: Spectrum,
    *,
    ax: Axes | None = None,
    modules: Iterable[str] | None = None,
    view: View = "variance",
) -> Axes:
    """Curves of the spectra: one for each input up to ten of them, else median and middle half of each projection.

    Modules that read the same input have the same spectrum and are drawn once. Experts of a parameter are one
    projection, and the effective rank over the layers is the median of theirs.

    Parameters
    ----------
    spectrum : Spectrum
        From ``calibration.spectrum()`` or ``subspaces.spectrum()``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.
    modules : iterable of str, optional
        Full names of the modules to draw; all by default.
    view : {"variance", "eigenvalues", "effective_rank"}
        Share of the variance that the first directions hold together, share that each direction holds, or the
        effective rank of each input over the layers.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Directions, the shares of single ones and ranks are on logarithmic axes.

    Raises
    ------
    ValueError
        If ``view`` is not one of the three, or ``modules`` is empty.
    KeyError
        If a module has no spectrum.

    Examples
    --------
    >>> viz.plot_spectrum(calibration.spectrum())
    <Axes: title={'left': 'Effective ranks ...'}, xlabel='first directions taken', ylabel='share of the variance'>
    """
    check_arguments(plot_spectrum, locals())
    if view not in ("variance", "eigenvalues", "effective_rank"):
        raise ValueError(f"view is {view!r}: choose 'variance', 'eigenvalues' or 'effective_rank'")
    frame = _inputs(spectrum, modules)
    ax = style.axes(ax, 8.6, 4.2)
    if view == "effective_rank":
        _draw_ranks(ax, frame)
    else:
        _draw_curves(ax, spectrum, frame, "cumulative" if view == "variance" else "share")
    summed_up = view != "effective_rank" and len(frame) > LINES
    over = "layers and experts" if any(map(is_expert, frame["module"])) else "layers"
    bands = f"lines: median over {over}, bands: middle half" if summed_up else ""
    style.headline(ax, _headline(frame), style.sentence(bands, _bounds(frame), _source(spectrum)))
    return ax


def _inputs(spectrum: Spectrum, modules: Iterable[str] | None) -> pd.DataFrame:
    """The rows to draw, one for each input, with a ``label`` that names all projections that read it.

    Many inputs are drawn by projection, those of all experts of a parameter as one; of experts that read no tokens
    there is nothing to draw.
    """
    frame = spectrum.to_frame()
    if modules is not None:
        frame = frame[frame["module"].isin(select_modules(spectrum, modules))]
    labels = frame.groupby("input")["projection"].agg(style.join_labels)
    frame = frame.drop_duplicates("input").assign(label=lambda rows: rows["input"].map(labels))
    read = ~frame["module"].map(is_expert) | (frame["effective_rank"] > 0)
    frame = frame[read] if read.any() else frame
    return frame.assign(label=frame["label"].map(parameter_name)) if len(frame) > LINES else frame


def _draw_curves(ax: Axes, spectrum: Spectrum, frame: pd.DataFrame, value: str) -> None:
    curves = _thinned(spectrum.curves(frame["module"])).merge(frame[["module", "label"]], on="module")
    if len(frame) <= LINES:
        curves["label"] = "layer " + curves["layer"].astype(str) + " " + curves["label"]
    labels = list(dict.fromkeys(curves["label"]))
    for label, color, dash in zip(labels, style.colors(len(labels)), style.dashes(len(labels)), strict=True):
        curve = _quartiles(curves[curves["label"] == label], value)
        point = "o" if len(curve) == 1 else ""
        ax.plot(curve.index, curve[0.5], color=color, linestyle=dash, linewidth=1.8, marker=point, label=label)
        if len(frame) > LINES:
            ax.fill_between(curve.index, curve[0.25], curve[0.75], color=color, alpha=0.13, linewidth=0)
    _label_curves(ax, spectrum, value)
    style.name_lines(ax)


def _quartiles(curves: pd.DataFrame, value: str) -> pd.DataFrame:
    """Quartiles over the modules at each direction.

    A cumulative curve that ends before others keeps its last value; shares of single directions end with the shortest.
    """
    wide = curves.pivot(index="direction", columns="module", values=value)
    return (wide.ffill() if value == "cumulative" else wide.dropna()).quantile([0.25, 0.5, 0.75], axis=1).T


def _thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """Keep points at even distances on a logarithmic axis, and the last one of each curve."""
    longest = curves["direction"].max()
    kept = np.unique(np.geomspace(1, longest, POINTS).round().astype(int))
    last = ~curves.duplicated("module", keep="last")
    return curves[curves["direction"].isin(kept) | last]


def _label_curves(ax: Axes, spectrum: Spectrum, value: str) -> None:
    quantity = "variance" if spectrum.kind in ("covariance", "c") else "energy"
    known = "" if all(np.isfinite(list(spectrum.traces.values()))) else " of the known directions"
    style.logarithmic(ax, "x")
    style.guide_lines(ax)
    if value == "cumulative":
        ax.set_xlabel("first directions taken")
        ax.set_ylabel(f"share of the {quantity}{known}")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 0.9, 1]))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        ax.axhline(0.9, linewidth=0.9, linestyle=(0, (1, 2)), **style.ink(0.5))
    else:
        ax.set_xlabel("direction")
        ax.set_ylabel(f"share of the {quantity}{known} in it")
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: style.percent(share)))
        ax.set_ylim(bottom=max(ax.get_ylim()[0], 1e-8))  # below is float32 rounding


def _draw_ranks(ax: Axes, frame: pd.DataFrame) -> None:
    labels = list(dict.fromkeys(frame["label"]))
    size = 4.5 if frame["layer"].nunique() <= 40 else 3
    n = len(labels)
    for label, color, dash, marker in zip(labels, style.colors(n), style.dashes(n), style.markers(n), strict=True):
        ranks = frame[frame["label"] == label].groupby("layer")["effective_rank"].median()
        look: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "markersize": size}
        ax.plot(ranks.index, ranks, label=label, linewidth=1.2, **look)
    style.layer_axis(ax, frame)
    style.logarithmic(ax, "y")
    style.guide_lines(ax)
    ax.set_ylabel("effective rank (directions)")
    style.name_lines(ax)


def _headline(frame: pd.DataFrame) -> str:
    ranks = frame["effective_rank"]
    low, high = frame.loc[ranks.idxmin()], frame.loc[ranks.idxmax()]
    least, most = style.number(low["effective_rank"]), style.number(high["effective_rank"])
    if len(frame) == 1:
        return f"The effective rank of {style.place(low)} is {least} of {low['dimension']}"
    return f"Effective ranks range from {least} ({style.place(low)}) to {most} ({style.place(high)})"


def _bounds(frame: pd.DataFrame) -> str:
    """Which bounds the effective ranks are if spectra are truncated."""
    if frame["trace"].isna().any():
        return "lower bounds: known directions only"
    return "upper bounds: spectra are truncated" if frame["covered"].min() < 0.99 else ""


def _source(spectrum: Spectrum) -> str:
    kind = "input covariance" if spectrum.kind == "covariance" else f"subspace kind {spectrum.kind}"
    return style.sentence(kind, style.source(spectrum.meta))
