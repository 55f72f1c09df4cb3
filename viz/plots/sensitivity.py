"""Picture of a Sensitivity: which modules the loss is most sensitive to."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from tlora.calibration.sensitivity import Sensitivity
from tlora.utils.validation import check_arguments
from viz import style
from viz.plots import heatmap


@style.styled
def plot_sensitivity(sensitivity: Sensitivity, *, ax: Axes | None = None) -> Axes:
    """Heat map of the sensitivity scores as shares of their sum, layers across and projections down.

    Parameters
    ----------
    sensitivity : Sensitivity
        From ``calibration.sensitivity``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The colors are logarithmic if scores span more than a factor of ten. All experts of a parameter are
        one cell, with their mean.

    Examples
    --------
    >>> viz.plot_sensitivity(calibration.sensitivity)
    <Axes: title={'left': 'The loss is most sensitive to ...'}, xlabel='layer', ylabel='projection'>
    """
    check_arguments(plot_sensitivity, locals())
    modules, sensitivity = len(sensitivity.names), sensitivity.by_parameter()
    any_score = any(sensitivity.scores.values())
    frame = sensitivity.to_frame()
    frame = frame.assign(percent=100 * frame["share"].fillna(0))
    ax = style.axes(ax, *heatmap.size(frame))
    norm = heatmap.scale(frame["percent"])
    mesh = heatmap.draw(ax, frame, "percent", cmap=style.SEQUENTIAL, norm=norm)
    written = any_score and heatmap.write(ax, mesh, frame, "percent", "{:.1f}", style.inches(ax))
    heatmap.color_bar(ax, mesh, "% of all scores" + (" (log)" if isinstance(norm, LogNorm) else ""))
    top = frame.loc[frame["score"].idxmax()]
    times = style.number(top["share"] * len(frame))
    detail = style.sentence(
        f"{style.percent(top['share'])} of the total, {times} × the mean module"
        if any_score
        else "all scores are zero",
        "cells: percent" if written else "",
        "experts: means over a parameter" if len(frame) < modules else "",
        style.source(sensitivity.meta),
    )
    equal = int((frame["score"] == top["score"]).sum())
    where = style.place(top) if equal == 1 else f"{equal} modules equally"
    finding = f"The loss is most sensitive to {where}" if any_score else "The loss reaches no module"
    style.headline(ax, finding, detail)
    return ax
