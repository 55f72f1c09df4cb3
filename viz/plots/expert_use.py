"""Picture of an ExpertUse: which routed experts of which layers do the work."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm

from tlora.calibration.expert_use import ExpertUse
from tlora.utils.validation import check_arguments
from viz import style
from viz.plots import heatmap


@style.styled
def plot_expert_use(use: ExpertUse, *, ax: Axes | None = None) -> Axes:
    """Heat map of the work of routed experts, layers across and experts down.

    Parameters
    ----------
    use : ExpertUse
        From ``tlora.expert_use(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Colors are shares of the work of all experts, logarithmic if they span more than a factor of ten.
        Compared with other text, colors are the difference of the shares, and a dot marks an expert whose interval
        excludes zero.

    Examples
    --------
    >>> viz.plot_expert_use(tlora.expert_use(routed))
    <Axes: title={'left': '... of 8 experts do 90 % of the work (95 %: ...)'}, xlabel='layer', ylabel='expert'>
    """
    check_arguments(plot_expert_use, locals())
    frame = use.to_frame()
    layers = style.layers(frame)
    value = "share" if use.other is None else "difference"
    cells = frame.assign(percent=100 * frame[value]).pivot(index="expert", columns="layer", values="percent")
    width = float(np.clip(3.2 + 0.3 * len(layers), 5.2, heatmap.WIDTH))
    ax = style.axes(ax, width, float(np.clip(1.6 + 0.16 * len(cells), 2.4, 6.5)))
    colors: dict[str, Any] = {"cmap": style.SEQUENTIAL, "norm": heatmap.scale(100 * frame["share"])}
    if use.other is not None:
        colors = {"cmap": style.DIVERGING, "norm": CenteredNorm(halfrange=cells.abs().max(axis=None) or 1)}
    edges = heatmap.edges(range(len(layers))), heatmap.edges(range(len(cells)))
    mesh = ax.pcolormesh(*edges, np.ma.masked_invalid(cells.to_numpy(dtype=float)), **colors)
    clear = frame[(frame["low"] > 0) | (frame["high"] < 0)]
    ax.plot([layers.index(layer) for layer in clear["layer"]], clear["expert"], ".", markersize=3, **style.ink())
    ax.set_facecolor(style.MISSING)
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.yaxis.set_major_locator(style.whole_numbers(ax.bbox.height / style.figure_of(ax).dpi))
    ax.set_ylabel("expert")
    style.layer_axis(ax, frame, columns=True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=24, fraction=0.05)
    logarithmic = " (log)" if isinstance(colors["norm"], LogNorm) else ""
    bar.set_label(f"% of the work{logarithmic}" if use.other is None else "difference, points")
    bar.outline.set_visible(False)
    top = frame.loc[frame["share"].idxmax()]
    detail = style.sentence(
        f"most, {style.percent(top['share'])}: expert {top['expert']} of layer {top['layer']}",
        "" if use.other_meta is None else "red: more here, dots: the interval excludes zero",
        style.source(use.meta),
        "" if use.other_meta is None else f"compared with {style.source(use.other_meta)}",
    )
    style.headline(ax, use.headline, detail)
    return ax
