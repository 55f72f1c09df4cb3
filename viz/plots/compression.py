"""Picture of a Compression: what is lost at every budget, by the weights, on the task and with one rank for all."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from tlora.adapters.compression import MEASURES, PLAIN, TASK, UNIFORM, Compression
from tlora.utils.validation import check_type
from viz import style

LABELS = {PLAIN: "shared, by the weights", TASK: "shared, on the task", UNIFORM: "one rank for all"}


@style.styled
def plot_compression(compression: Compression, *, ax: Axes | None = None) -> Axes:
    """Error against parameters kept: the budget shared by the weights and on the task, beside one rank for all.

    Parameters
    ----------
    compression : Compression
        From ``tlora.compress(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure when left out.

    Returns
    -------
    matplotlib.axes.Axes
        The axes that were drawn on. The dot is the adapter that was cut; errors are on held-out samples where there are
        some, else in the measure of the cut.

    Raises
    ------
    TypeError
        If ``compression`` is not a Compression.
    """
    found = check_type(compression, Compression, "tlora.compress(adapter, parameters=0.5)")
    frame, measure = found.curves(), found.measures[-1]
    ax = style.axes(ax, 5.4, 3.6)
    colours = dict(zip(LABELS, style.colours(3), strict=True))
    for cut, curve in frame.groupby("cut", sort=False):
        dashes = "--" if cut == UNIFORM else "-"
        ax.plot(curve["share"], curve["error"], dashes, color=colours[str(cut)], label=LABELS[str(cut)], linewidth=1.6)
    before, after = found.parameters
    ax.plot([after / before], [found.error(measure)], "o", **style.ink(), zorder=5)
    style.guide_lines(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlim=(0, 1), ylim=(0, None), xlabel=f"parameters kept, of {before:,}", ylabel="error")
    ax.legend(loc="upper right")
    detail = style.sentence(f"error: share of {MEASURES[measure]} that is lost", style.source(found.meta))
    style.headline(ax, _finding(found, frame, measure), detail)
    return ax


def _finding(found: Compression, frame: pd.DataFrame, measure: str) -> str:
    """What is kept, and what the other ways would have lost with at most as many parameters."""
    before, after = found.parameters
    own = found.cuts[-1]
    within = frame[frame["parameters"] <= after].groupby("cut", sort=False)["error"].last()
    others = [f"{style.percent(error)} {_HOW[str(cut)]}" for cut, error in within.items() if cut != own]
    lost = style.percent(found.error(measure))
    return f"{style.percent(after / before)} of the parameters lose {lost}; " + " and ".join(others)


_HOW = {PLAIN: "shared by the weights", UNIFORM: "with one rank for all"}
