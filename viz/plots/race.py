"""Picture of a Race: held-out losses as training goes on, and by how much the best arm is ahead, with its interval."""

from __future__ import annotations

from typing import Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tlora.comparison.race_result import Race
from tlora.utils.validation import check_type, one_of
from viz import style

By = Literal["step", "seconds"]
LABELS = {"step": "optimiser step", "seconds": "seconds of training"}


@style.styled
def plot_race(race: Race, *, by: By = "step") -> Figure:
    """Held-out losses of all arms, and below how far the best one is ahead of each other, with the interval.

    Parameters
    ----------
    race : Race
        From ``tlora.race(...)``; one that is still going on, too.
    by : {"step", "seconds"}
        What it is drawn over: optimiser steps, or the time that an arm's own training took.

    Returns
    -------
    matplotlib.figure.Figure
        Above, thick lines are means over seeds, and thin ones the single trainings. Below, each band is the interval at
        each look of the loss of another arm less that of the best, so that the best is ahead of it where the band is
        above zero; the grey strip is the margin. Seconds are those of the best arm there.

    Raises
    ------
    TypeError
        If ``race`` is not a Race.
    ValueError
        If ``by`` is unknown.
    """
    check_type(race, Race, "the result of tlora.race(...)")
    one_of("by", by, get_args(By))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.6, 5.4), layout="constrained", sharex=True, height_ratios=(3, 2)
    )
    colours = dict(zip(race.arms, style.colours(len(race.arms)), strict=True))
    _draw_losses(above, race, by, colours)
    _draw_differences(below, race, by, colours)
    for panel in (above, below):
        style.guide_lines(panel)
        panel.yaxis.set_major_formatter(style.plain_numbers())
    above.set_ylabel("held-out loss, nats")
    above.legend(loc="best")
    below.set(xlabel=LABELS[by], ylabel=f"lead of {style.cut(race.leader)}, nats")
    below.xaxis.set_major_locator(MaxNLocator(integer=by == "step", steps=[1, 2, 5, 10], min_n_ticks=1))
    style.headline(above, race.finding, style.sentence(race.basis, style.source(race.meta)))
    return figure


def _draw_losses(ax: Axes, race: Race, by: By, colours: dict[str, Any]) -> None:
    """The mean over seeds of each arm, and each training."""
    frame = race.to_frame()
    for arm, rows in frame.groupby("arm", sort=False):
        name = str(arm)
        for _, one in rows.groupby("seed"):
            ax.plot(one[by], one["loss"], color=colours[name], linewidth=0.7, alpha=0.45)
        mean = rows.groupby("step")[list({"loss", "seconds"})].mean().reset_index()
        told = f"{style.cut(name)}: {race.parameters[name]:,} parameters, rate {race.learning_rates[name]:.2g}"
        ax.plot(mean[by], mean["loss"], "o-", color=colours[name], linewidth=1.9, markersize=4, label=told)


def _draw_differences(ax: Axes, race: Race, by: By, colours: dict[str, Any]) -> None:
    """A band for each arm but the best."""
    place = dict(zip(race.looks, race.clock[:, race.arms.index(race.leader)].mean(-1).tolist(), strict=True))
    ax.axhspan(-race.margin, race.margin, color="0.5", alpha=0.18, linewidth=0)
    ax.axhline(0, linewidth=0.9, **style.ink(0.7))
    frame = race.differences()
    last = [-1.5 * race.margin, 1.5 * race.margin]
    for other in race.arms:
        rows = frame[frame["arm"].isin((race.leader, other)) & frame["other"].isin((race.leader, other))]
        rows = rows[rows["low"].notna()]
        if other == race.leader or not len(rows):
            continue
        # of a pair, the table has one order: the leader may be its second
        sign = np.where(rows["arm"] == race.leader, 1.0, -1.0)
        ends = np.sort(np.stack([sign * rows["low"], sign * rows["high"]]), axis=0)
        x = rows["step"] if by == "step" else rows["step"].map(place)
        ax.fill_between(x, *ends, color=colours[other], alpha=0.22, linewidth=0)
        ax.errorbar(x, sign * rows["difference"], np.abs(ends - np.asarray(sign * rows["difference"])),
                    fmt="o-", color=colours[other], linewidth=1.5, markersize=4, capsize=3)  # fmt: skip
        last = [*last, *ends[:, -1]]
    # Early looks may spend little, and their bands are wide: they are cut so that the last can be read.
    ax.set_ylim(1.4 * min(last), 1.4 * max(last))
