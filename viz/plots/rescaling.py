"""Picture of a Rescaling: the loss on the task against what other text loses, from the base to the whole adapter."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from tlora.explanation.measure_scales import LEFT_OUT, PART, SCALE, TASK, RescaledPoint, Rescaling
from tlora.utils.text import capitalized
from tlora.utils.validation import check_arguments
from viz import style

Place = tuple[float, float]

LOOKS = {SCALE: "o-", LEFT_OUT: "s--", PART: "."}
"""Looks of the whole adapter scaled, of several parts left out, and of one part left out."""


@style.styled
def plot_rescaling(rescaling: Rescaling, *, ax: Axes | None = None) -> Axes:
    """Loss on the task against the largest change of the loss of other text, for every point that was measured.

    Parameters
    ----------
    rescaling : Rescaling
        From ``tlora.measure_scales(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The line is the adapter's scale, with its numbers; the circle is the best point, the dashed line the
        limit.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, mine=["w4 w5 w6 w7", "w8 w9"])
    >>> viz.plot_rescaling(tlora.measure_scales(adapted, task, texts, limit=0.05, progress=False))
    <Axes: title={'left': 'Scale ...'}, xlabel='largest change of other text, ...', ylabel='task loss, ...'>
    """
    check_arguments(plot_rescaling, locals())
    ax = style.axes(ax, 5.8, 4.0)
    for (kind, look), color in zip(LOOKS.items(), style.colors(3), strict=True):
        points = [point for point in rescaling.points if point.kind == kind]
        places = [(rescaling.lost(point), rescaling.loss(point, TASK)) for point in points]
        if points:
            ax.plot(*zip(*places, strict=True), look, color=color, markersize=4, linewidth=1.4)
            _name(ax, kind, points, places, color)
    best = rescaling.best
    ax.plot([rescaling.lost(best)], [rescaling.loss(best, TASK)], "o", markersize=9, fillstyle="none", **style.ink())
    if rescaling.limit is not None:
        ax.axvline(rescaling.limit, linestyle="--", linewidth=0.8, **style.ink(0.6))
        _write(ax, f"limit {rescaling.limit:g}", (rescaling.limit, 1), (3, -9), xycoords=ax.get_xaxis_transform())
    style.guide_lines(ax)
    style.logarithmic(ax, "y")
    ax.set(xlabel="largest change of other text, nats per token", ylabel="task loss, nats per token")
    texts = ", ".join(name for name in rescaling.counts if name != TASK)
    style.headline(ax, _headline(rescaling), style.sentence(f"other text: {texts}", style.source(rescaling.meta)))
    return ax


def _name(ax: Axes, kind: str, points: list[RescaledPoint], places: list[Place], color: Any) -> None:
    """Write the scales at their points, and at the other points what was left out."""
    if kind == SCALE:
        for point, place in zip(points, places, strict=True):
            _write(ax, f"{'scale ' if point.scale == 1 else ''}{point.scale:.3g}", place, (4, 4), color=color)
    elif kind == PART:
        _write(ax, "one part left out", max(places), (5, 3), color=color)
    else:
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.7}
        _write(ax, "several parts left out", places[len(places) // 2], (50, 12), color=color, arrowprops=line)


def _write(ax: Axes, text: str, place: Place, offset: tuple[float, float], **look: Any) -> None:
    ax.annotate(text, place, offset, textcoords="offset points", fontsize=8, **look)


def _headline(rescaling: Rescaling) -> str:
    """What the best point changes, compared with the whole adapter."""
    whole = next(point for point in rescaling.points if point.kind == SCALE and point.scale == 1)
    best = rescaling.best
    points = dict.fromkeys((best, whole))
    texts = " instead of ".join(f"{rescaling.lost(point):+.3f}" for point in points).replace("-", style.MINUS)
    tasks = " instead of ".join(f"{rescaling.loss(point, TASK):.3f}" for point in points)
    return f"{capitalized(best.label)}: other text changes by {texts} nats per token, and the task loss is {tasks}"
