"""Picture of a TrainingRun: the losses over the steps, and the metrics before and after."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tlora.training.run import TrainingRun
from tlora.utils.validation import check_arguments
from viz import style

TRAINING, VALIDATION, TEST = style.colors(3)


@style.styled
def plot_training(run: TrainingRun, *, ax: Axes | None = None) -> Axes:
    """Training and validation loss over the steps, and the task's loss before and after.

    Parameters
    ----------
    run : TrainingRun
        From ``tlora.train(...)``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The title has the metrics before and after.

    Examples
    --------
    >>> viz.plot_training(run)
    <Axes: title={'left': '...'}, xlabel='optimizer step', ylabel='loss, nats'>
    """
    check_arguments(plot_training, locals())
    history = run.to_frame()
    ax = style.axes(ax, 8.6, 3.9)
    _draw_loss(ax, history, "loss", "training loss", ".", color=TRAINING, linewidth=1, alpha=0.75, zorder=2.5)
    _draw_loss(ax, history, "eval_loss", "validation loss", "o", color=VALIDATION, linewidth=2)
    _draw_before_and_after(ax, run)
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    style.loss_axis(ax, "loss, nats")
    style.name_lines(ax)
    ending = "stopped: not finite" if run.diverged else "interrupted" if run.interrupted else ""
    detail = f"{run.steps} steps, {run.trainable_parameters:,} parameters"
    style.headline(ax, _headline(run, history), style.sentence(detail, ending, style.source(run.meta)))
    return ax


def _draw_loss(ax: Axes, history: pd.DataFrame, column: str, label: str, marker: str, **look: Any) -> None:
    """Draw a line through the steps that have the loss, with markers if these are few."""
    rows = history.dropna(subset=[column])
    if len(rows):
        points = marker if len(rows) <= 40 else ""
        ax.plot(rows["step"], rows[column], label=label, marker=points, markersize=5, **look)


def _draw_before_and_after(ax: Axes, run: TrainingRun) -> None:
    """Draw diamonds at the first and the last step."""
    points = [(step, of["loss"]) for step, of in ((0, run.before), (run.steps, run.after)) if "loss" in of]
    if points:
        look: dict[str, Any] = {
            "marker": "D",
            "markersize": 7,
            "markeredgecolor": "white",
            "clip_on": False,
            "zorder": 3,
        }
        label = f"{split_in_words(run)} loss, before and after"
        ax.plot(*zip(*points, strict=True), color=TEST, linestyle="none", label=label, **look)


def _headline(run: TrainingRun, history: pd.DataFrame) -> str:
    shared = {name: (run.before[name], run.after[name]) for name in run.before if name in run.after}
    shared.pop("perplexity", None)
    # metrics with equal values, such as a verifier's and the exact match, are named once
    names: dict[tuple[float, float], str] = {}
    for name, values in shared.items():
        names.setdefault(values, name)
    if names:
        changes = [_change(name.removeprefix("train_"), *values) for values, name in list(names.items())[:3]]
        return f"{split_in_words(run).capitalize()} {', '.join(changes)}"
    losses = history["loss"].dropna()
    if len(losses):
        return _change("Training loss", losses.iloc[0], losses.iloc[-1])
    return "Nothing was logged"


def split_in_words(run: TrainingRun) -> str:
    """The split that the metrics were taken on, in a word: ``"test"``, ``"validation"`` or ``"training"``."""
    return "training" if run.evaluated_on == "train" else run.evaluated_on


def _change(name: str, before: float, after: float) -> str:
    """``"exact match rose from 2.0 % to 41.5 %"``; a metric between 0 and 1 that is not a loss is a share."""
    share = "loss" not in name and min(before, after) >= 0 and max(before, after) <= 1
    old, new = (f"{100 * value:.1f} %" if share else _digits(value) for value in (before, after))
    how = "rose" if after > before else "fell" if after < before else "went"  # such as to a loss that is not finite
    change = f"stayed at {old}" if old == new else f"{how} from {old} to {new}"
    return f"{name.replace('_', ' ')} {change}"


def _digits(value: float) -> str:
    """Three significant digits, zeros at the end too: ``"0.560"``, ``"6.00"``, ``"100"``."""
    return f"{value:#.3g}".rstrip(".")
