"""Picture of a ResourceEstimate: the peak memory of training, with A trained and frozen."""

from __future__ import annotations

from pathlib import PurePath

from matplotlib.axes import Axes

from tlora.allocation.footprint import TRAININGS
from tlora.resources.estimate import ResourceEstimate
from tlora.utils.text import size_text
from tlora.utils.validation import check_arguments
from viz import style


@style.styled
def plot_memory(estimate: ResourceEstimate, *, ax: Axes | None = None) -> Axes:
    """Peak memory of a training step as bars: LoRA and a frozen ``A``, with and without gradient checkpointing.

    Parameters
    ----------
    estimate : ResourceEstimate
        From ``tlora.estimate(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The dark part of a bar are the weights, the middle one the stored activations; the line is the memory,
        if the estimate has one.

    Examples
    --------
    >>> viz.plot_memory(tlora.estimate("base", rank=8, length=64))
    <Axes: title={'left': '...'}, xlabel='peak memory of a training step, GB'>
    """
    check_arguments(plot_memory, locals())
    ways, recipe = estimate.what_fits, estimate.meta.recipe
    bits = recipe["bits"] or ways["bits"].max()
    asked = (ways["batch_size"] == recipe["batch_size"]) & (ways["bits"] == bits)
    asked &= (ways["optim"] == recipe["optim"]) & (ways["gpus"] == recipe["gpus"])
    ways = ways[asked].set_index(["gradient_checkpointing", "training"])
    rows = [(checkpointing, kind) for checkpointing in (False, True) for kind in TRAININGS]
    bars = ways.loc[[row for row in rows if row in ways.index]]
    names = [f"{TRAININGS[kind]}{', checkpointing' if checkpointing else ''}" for checkpointing, kind in bars.index]
    weights, left = estimate.bytes["weights"] / 1e9, 0.0
    rest = bars["gigabytes"] - weights - bars["activations"]
    ax = style.axes(ax, 7.2, 0.4 * len(bars) + 1.6)
    parts = {"weights": bars["gigabytes"] * 0 + weights, "stored activations": bars["activations"], "other": rest}
    for (label, widths), color in zip(parts.items(), style.colors(3), strict=True):
        ax.barh(names, widths, left=left, color=color, label=label)
        left = left + widths
    if estimate.memory is not None:
        ax.axvline(estimate.memory / 1e9, **style.ink(), linewidth=1, label=f"memory, {estimate.memory / 1e9:g} GB")
    ax.invert_yaxis()
    ax.set(xlabel="peak memory of a training step, GB")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), labelspacing=0.6)
    work = f"{recipe['batch_size']} samples of {recipe['length']:,} tokens, {recipe['dtype']}, rank {recipe['rank']}"
    lora, frozen = (1e9 * bars["gigabytes"][False, kind] for kind in ("A and B", "B"))
    style.headline(
        ax,
        f"A frozen: {size_text(frozen)}, LoRA: {size_text(lora)}",
        style.sentence(work, PurePath(estimate.meta.model).name),
    )
    return ax
