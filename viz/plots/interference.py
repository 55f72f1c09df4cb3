"""Picture of an Interference: how much each of two adapters changes the other's outputs, a point a module."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from tlora.explanation.interference import Interference
from tlora.utils.validation import check_arguments
from viz import style

SMALLEST = 1e-6
"""Ratios below this are drawn here: a logarithmic axis has no 0."""


@style.styled
def plot_interference(found: Interference, *, ax: Axes | None = None) -> Axes:
    """How much each adapter changes what the other does on its own task: a point a module, colored by projection.

    Parameters
    ----------
    found : Interference
        From ``tlora.interference(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, logarithmic. Modules that one of the adapters does not change are left out.

    Examples
    --------
    >>> viz.plot_interference(tlora.interference("adapter", "other", (calibration, calibration)))
    <Axes: title={'left': '...'}, xlabel=..., ylabel=...>
    """
    check_arguments(plot_interference, locals())
    frame = found.to_frame()
    both = frame[(frame["rank_first"] > 0) & (frame["rank_second"] > 0)]
    roles = both["module"].str.rpartition(".")[2]
    first, second = found.labels
    ax = style.axes(ax, 5.6, 4.2)
    names = list(dict.fromkeys(roles))
    for name, color, marker in zip(names, style.colors(len(names)), style.markers(len(names)), strict=True):
        part = both[roles == name][["on_first", "on_second"]].clip(lower=SMALLEST)
        ax.scatter(part["on_first"], part["on_second"], s=18, color=color, marker=marker, label=name, linewidth=0)
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    where = "on {}'s task" if found.on_tasks else "in the weights"
    ax.set_xlabel(f"{second} / {first}, {where.format(first)}")
    ax.set_ylabel(f"{first} / {second}, {where.format(second)}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
    left_out = len(frame) - len(both)
    detail = style.sentence(
        f"{len(both)} modules, squared norms, 1: as much as the adapter's own",
        f"{left_out} in one adapter alone" if left_out else "",
        f"overlap of reads {style.percent(both['reads'].mean())}, writes {style.percent(both['writes'].mean())}",
        style.source(found.meta),
    )
    on_first, on_second = (f"{value:.2g}" for value in found.overall)
    what = "outputs on its task" if found.on_tasks else "weights"
    finding = f"{second} adds {on_first} times what {first} adds to the {what}, {first} {on_second} times in return"
    style.headline(ax, finding, detail)
    return ax
