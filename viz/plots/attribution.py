"""Picture of an Attribution: the tokens of an answer by what they gained, and the modules that contributed most."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.axes import Axes

from tlora.explanation.attribution import Attribution
from tlora.utils.text import place_text
from tlora.utils.validation import check_arguments, require_index
from viz import style
from viz.plots.tokens import GAP, STRIP, append_strip, draw_strip, strip_limit


@style.styled
def plot_attribution(attribution: Attribution, sample: int = 0, *, ax: Axes | None = None) -> Axes:
    """Strip of a request and its answer, colored by what each token gained, over bars of the ten largest modules.

    Parameters
    ----------
    attribution : Attribution
        From ``tlora.attribute(...)``.
    sample : int
        Number of the sample whose tokens are drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default. The strip takes its room from it.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the bars, which are means over all samples, with 95 % intervals if there are several. A dot is what
        leaving out the module alone costs.

    Examples
    --------
    >>> attribution = tlora.attribute(adapted, task, limit=2, points=4, progress=False)
    >>> viz.plot_attribution(attribution)
    <Axes: title={'left': 'Layer ...'}, xlabel='nats: ...', ylabel='module'>
    """
    check_arguments(plot_attribution, locals())
    explained = attribution.samples[require_index(sample, "sample", len(attribution.samples))]
    top = attribution.largest()
    ax = style.axes(ax, 8.6, 5.6)
    places = np.arange(len(top))
    bar, dot = style.colors(2)
    ax.barh(places, top["contribution"], height=0.7, color=bar, alpha=0.55)
    if not top["low"].isna().any():
        ends = [top["contribution"] - top["low"], top["high"] - top["contribution"]]
        ax.errorbar(top["contribution"], places, xerr=ends, fmt="none", linewidth=1, **style.ink(0.6))
    ax.plot(top["cost"], places, "o", color=dot, markersize=5)
    labels = [style.cut(place_text(*row)) for row in top[["layer", "projection", "module"]].itertuples(index=False)]
    ax.set_yticks(places, labels, parse_math=False)
    ax.set_ylim(len(top) - 0.4, -0.6)
    ax.axvline(0, linewidth=0.8, **style.ink(0.6))
    ax.set(xlabel="nats: contributed (bar), lost if the module alone is left out (dot)", ylabel="module")
    strip = append_strip(ax)
    detail = style.sentence(
        f"tokens of the answer: red gained, blue lost, up to {style.number(strip_limit(explained.rise[0]))} nats",
        f"the contributions miss the exact difference by {style.percent(attribution.gap)}",
        style.source(attribution.meta),
    )
    style.headline(ax, re.sub("^layer ", "Layer ", attribution.headline), detail, lift=STRIP + GAP)
    draw_strip(strip, explained.tokens, explained.positions, explained.rise[0], style.inches(ax))
    return ax
