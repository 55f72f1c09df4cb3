"""Picture of SideEffects: the tokens of one text by what they lost and gained, over the change of each set's loss."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from tlora.explanation.side_effects import SideEffects
from tlora.utils.validation import check_arguments, require_index
from viz import style
from viz.plots.tokens import GAP, STRIP, append_strip, draw_strip, strip_limit


@style.styled
def plot_side_effects(effects: SideEffects, sample: int = 0, *, ax: Axes | None = None) -> Axes:
    """Strip of a text, colored by what the adapter changed, over bars of the change of each set's loss.

    Parameters
    ----------
    effects : SideEffects
        From ``tlora.side_effects(...)``.
    sample : int
        Row of the text in ``effects.to_frame()``: 0 for the worst.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default. The strip takes its room from it.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the bars, the set that lost most first, with 95 % intervals over texts. Bars to the right are losses
        that rose.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, mine=["w4 w5 w6 w7", "w8 w9"])
    >>> viz.plot_side_effects(tlora.side_effects(adapted, texts, explain=0, progress=False))
    <Axes: title={'left': 'The loss of mine changed by ...'}, xlabel='change of the loss, nats per token', ylabel='set'>
    """
    check_arguments(plot_side_effects, locals())
    text = effects.samples[require_index(sample, "sample", len(effects.samples))]
    sets = effects.sets().sort_values("loss_change", ascending=False)
    ax = style.axes(ax, 8.6, 0.9 + 0.4 * len(sets) + STRIP + GAP)
    places = np.arange(len(sets))
    ax.barh(places, sets["loss_change"], height=0.6, color=style.colors(1)[0], alpha=0.55)
    ends = np.nan_to_num([sets["loss_change"] - sets["low"], sets["high"] - sets["loss_change"]])
    ax.errorbar(sets["loss_change"], places, xerr=ends, fmt="none", linewidth=1, **style.ink(0.6))
    ax.set_yticks(places, [style.cut(name) for name in sets["set"]], parse_math=False)
    ax.set_ylim(len(sets) - 0.4, -0.6)
    ax.axvline(0, linewidth=0.8, **style.ink(0.6))
    ax.set(xlabel="change of the loss, nats per token", ylabel="set")
    strip = append_strip(ax)
    detail = style.sentence(
        f"tokens of {text.set} {text.number}: red gained, blue lost, up to {style.number(strip_limit(text.rise))} nats",
        style.source(effects.meta),
    )
    style.headline(ax, effects.headline, detail, lift=STRIP + GAP)
    draw_strip(strip, text.tokens, text.positions, text.rise, style.inches(ax))
    return ax
