"""Picture of a Rescaling: the loss on the task against what other text loses, from the base to the whole adapter."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from tlora.explanation.measure_scales import LEFT_OUT, PART, SCALE, TASK, Rescaling
from tlora.utils.validation import check_arguments
from viz import style

LABELS = {SCALE: "the whole adapter scaled", LEFT_OUT: "several parts left out", PART: "one part left out"}


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
        The axes. The line is the adapter's scale, with its numbers; the dot is the best point, the dashed line the
        limit.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, mine=["w4 w5 w6 w7", "w8 w9"])
    >>> viz.plot_rescaling(tlora.measure_scales(adapted, task, texts, limit=0.05, progress=False))
    <Axes: title={'left': 'scale 1: ...'}, xlabel='largest change of other text, ...', ylabel='task loss, ...'>
    """
    check_arguments(plot_rescaling, locals())
    ax = style.axes(ax, 5.8, 4.0)
    for (kind, label), color in zip(LABELS.items(), style.colors(3), strict=True):
        points = [point for point in rescaling.points if point.kind == kind]
        x, y = [rescaling.lost(point) for point in points], [rescaling.loss(point, TASK) for point in points]
        if points:
            look = {SCALE: "o-", LEFT_OUT: "s--", PART: "."}[kind]
            ax.plot(x, y, look, color=color, label=label, markersize=4, linewidth=1.4)
        for point, at in zip(points, zip(x, y, strict=True), strict=True):
            if kind == SCALE:
                ax.annotate(f"{point.scale:.3g}", at, (4, 4), textcoords="offset points", fontsize=8, **style.ink(0.6))
    best = rescaling.best
    ax.plot([rescaling.lost(best)], [rescaling.loss(best, TASK)], "o", markersize=9, fillstyle="none", **style.ink())
    if rescaling.limit is not None:
        ax.axvline(rescaling.limit, linestyle="--", linewidth=0.8, **style.ink(0.6))
    style.guide_lines(ax)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="largest change of other text, nats per token", ylabel="task loss, nats per token")
    ax.legend()
    texts = ", ".join(name for name in rescaling.counts if name != TASK)
    style.headline(ax, rescaling.headline, style.sentence(f"other text: {texts}", style.source(rescaling.meta)))
    return ax
