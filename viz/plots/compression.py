"""Picture of a Compression: the error at every budget, shared by the weights, on the task, or with one rank for all."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from tlora.adapters.compression import MEASURES, PLAIN, TASK, UNIFORM, Compression
from tlora.utils.validation import check_arguments
from viz import style

LABELS = {PLAIN: "shared, by the weights", TASK: "shared, on the task", UNIFORM: "one rank for all"}


@style.styled
def plot_compression(compression: Compression, *, ax: Axes | None = None) -> Axes:
    """Error against parameters kept: the budget shared by the weights, on the task, and with one rank for all.

    Parameters
    ----------
    compression : Compression
        From ``tlora.compress(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The dot is the adapter that was cut; errors are on held-out samples if there are any, else in the
        measure of the cut.

    Examples
    --------
    >>> viz.plot_compression(tlora.compress(adapted, parameters=0.5))
    <Axes: title={'left': '...'}, xlabel='parameters kept, ...', ylabel='error'>
    """
    check_arguments(plot_compression, locals())
    frame, measure = compression.curves(), compression.measures[-1]
    ax = style.axes(ax, 5.4, 3.6)
    colors = dict(zip(LABELS, style.colors(3), strict=True))
    for cut, curve in frame.groupby("cut", sort=False):
        dashes = "--" if cut == UNIFORM else "-"
        ax.plot(curve["share"], curve["error"], dashes, color=colors[str(cut)], label=LABELS[str(cut)], linewidth=1.6)
    before, after = compression.parameters
    ax.plot([after / before], [compression.error(measure)], "o", **style.ink(), zorder=5)
    style.guide_lines(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel=f"parameters kept, of {before:,}", ylabel="error")
    style.name_lines(ax, above=True)
    detail = style.sentence(f"error: share of {MEASURES[measure]} that is lost", style.source(compression.meta))
    style.headline(ax, _headline(compression, frame, measure), detail)
    return ax


def _headline(compression: Compression, frame: pd.DataFrame, measure: str) -> str:
    """What is kept, and what the other ways would have lost with at most as many parameters."""
    before, after = compression.parameters
    own = compression.cuts[-1]
    affordable = frame[frame["parameters"] <= after].groupby("cut", sort=False)["error"].last()
    others = [f"{style.percent(error)} {_HOW[str(cut)]}" for cut, error in affordable.items() if cut != own]
    lost = style.percent(compression.error(measure))
    return f"With {style.percent(after / before)} of its parameters the adapter loses {lost}, not {' or '.join(others)}"


_HOW = {PLAIN: "shared by the weights", UNIFORM: "with one rank for all"}
