"""Picture of a Race: held-out losses during training, and the intervals by which the best arm is ahead."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tlora.comparison.race_result import Race
from tlora.utils.validation import check_arguments
from viz import style


@style.styled
def plot_race(race: Race, *, ax: Axes | None = None) -> Axes:
    """Held-out losses of all arms, and the interval of each arm's distance to the best one.

    Parameters
    ----------
    race : Race
        From ``tlora.race(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure when left out.

    Returns
    -------
    matplotlib.axes.Axes
        The title compares the best arm with the next. Thick lines are means over seeds, thin ones single trainings. The
        bar on each other arm is the interval of its difference to the best arm, whose loss is the horizontal line: the
        best arm is ahead if the bar does not reach that line. The gray strip is the margin.

    Raises
    ------
    TypeError
        If ``race`` is not a Race.

    Examples
    --------
    >>> race = tlora.race(model, task, {"paper": "tlora-paper", "LoRA": "lora"}, steps=4, seeds=2, learning_rate=1e-2,
    ...                   progress=False)
    >>> viz.plot_race(race).get_ylabel()
    'held-out loss, nats'
    """
    check_arguments(plot_race, locals())
    ax = style.axes(ax, 8.2, 4.2)
    colors = dict(zip(race.arms, style.colors(len(race.arms)), strict=True))
    rates = set(race.learning_rates.values())
    for arm, rows in race.to_frame().groupby("arm", sort=False):
        name = str(arm)
        for _, training in rows.groupby("seed"):
            ax.plot(training["step"], training["loss"], color=colors[name], linewidth=0.7, alpha=0.45)
        means = rows.groupby("step")["loss"].mean()
        rate = f", rate {race.learning_rates[name]:.2g}" if len(rates) > 1 else ""
        label = f"{style.cut(name)}\n{race.parameters[name]:,} parameters{rate}"
        ax.plot(means.index, means, "o-", color=colors[name], linewidth=1.9, markersize=4, label=label)
    style.loss_axis(ax, "held-out loss, nats")
    _draw_intervals(ax, race, colors)
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    style.name_lines(ax)
    rate = f"learning rate {rates.pop():.2g}" if len(rates) == 1 else ""
    ends = ", ".join(f"{name} diverged after {step} steps" for name, step in race.diverged.items())
    style.headline(ax, race.verdict, style.sentence(ends, race.basis, rate, style.source(race.meta)))
    return ax


def _draw_intervals(ax: Axes, race: Race, colors: dict[str, tuple[float, float, float]]) -> None:
    """The interval of each other arm at the leader's loss plus their difference."""
    for pair in race.differences().query("arm == @race.leader and step > 0").itertuples():
        ends = [[pair.difference - pair.low], [pair.high - pair.difference]]
        ax.errorbar(pair.step, pair.loss + pair.difference, ends, color=colors[pair.other], capsize=4, linewidth=1.5)
        ax.axhline(pair.loss, linestyle=":", color=colors[race.leader], linewidth=1)
        ax.axhspan(pair.loss - race.margin, pair.loss + race.margin, color="0.5", alpha=0.12, linewidth=0)
