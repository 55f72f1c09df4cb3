"""Picture of a Sensitivity: which modules the loss is most sensitive to."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from tlora.calibration.sensitivity import Sensitivity, check_scores
from tlora.utils.validation import check_type
from viz import style
from viz.plots import heatmap


@style.styled
def plot_sensitivity(sensitivity: Sensitivity, *, ax: Axes | None = None) -> Axes:
    """Heat map of the sensitivity scores, layers across and projections down.

    Parameters
    ----------
    sensitivity : Sensitivity
        From ``calibration.sensitivity``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure when left out.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn on. The colours are logarithmic where scores span more than a factor of ten.

    Raises
    ------
    TypeError
        If ``sensitivity`` is not a Sensitivity.
    ValueError
        If a score is negative, NaN or infinite; the message names the module.
    """
    scores = check_type(sensitivity, Sensitivity, "calibration.sensitivity").scores
    if reached := any(scores.values()):
        check_scores(scores)
    frame = sensitivity.to_frame()
    ax = style.axes(ax, *heatmap.size(frame))
    norm = heatmap.scale(frame["score"])
    mesh = heatmap.draw(ax, frame, "score", cmap=style.SEQUENTIAL, norm=norm)
    shares = reached and heatmap.write(ax, mesh, frame, "share", "{:.1%}", style.inches(ax))
    heatmap.colour_bar(ax, mesh, "score, nats" + (" (log)" if isinstance(norm, LogNorm) else ""))
    top = frame.loc[frame["score"].idxmax()]
    times = style.number(top["share"] * len(frame))
    detail = style.sentence(
        f"{style.percent(top['share'])} of the total, {times} × the mean module" if reached else "all scores are zero",
        "cells: share of the total" if shares else "",
        style.source(sensitivity.meta),
    )
    alike = int((frame["score"] == top["score"]).sum())
    where = style.place(top) if alike == 1 else f"{alike} modules alike"
    finding = f"The loss is most sensitive to {where}" if reached else "The loss reaches no module"
    style.headline(ax, finding, detail)
    return ax
