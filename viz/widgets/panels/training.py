"""Panel "Training": the losses, the metrics before and after, and how the training went."""

from __future__ import annotations

import numpy as np

from tlora.numerics.statistics import share_interval
from tlora.training.run import TrainingRun
from tlora.utils.text import duration_text, is_share, metric_text, size_text
from viz import style
from viz.plots.training import split_in_words
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, chart, facts, line, number, table, text, texts, whole
from viz.widgets.results import Results

ROWS = 40
"""Most rows of the history in the table."""


class TrainingPanel(Panel):
    """Curves, metrics, circumstances and history of the run."""

    name, title = "training", "Training"
    stage = "training"
    about = "How the loss fell, and the metrics of the task before and after."
    needs = ("run",)

    def parts(self) -> list[Part]:
        """How it ended if it was stopped, a chart, tables, and the history folded."""
        run: TrainingRun = self.result
        metrics = metrics_table(run) if run.before or run.after else text("No metrics were taken before and after.")
        stopped = [text(ending(run))] if ending(run) else []
        return [*stopped, *_losses(run), metrics, _circumstances(self.results, run), *_history(run)]


def ending(run: TrainingRun) -> str:
    """How a training ended that did not make all of its steps; empty for one that did."""
    steps = run.meta.recipe.get("steps")
    after = "after {:,} of {:,} steps".format(*steps) if steps else "before its last step"
    if run.diverged:
        return (
            f"Training stopped {after}: the loss or a gradient was not finite. The adapter is that of the step before."
        )
    return f"Training was interrupted {after}." if run.interrupted else ""


def _losses(run: TrainingRun) -> list[Part]:
    history = run.to_frame()
    if not len(history):
        return []
    lines = [line("training loss", history["step"], history["loss"], thin=True)]
    if history["eval_loss"].notna().any():
        lines.append(line("validation loss", history["step"], history["eval_loss"], dots=True))
    points = [(step, of["loss"]) for step, of in ((0, run.before), (run.steps, run.after)) if "loss" in of]
    if points:
        label = f"{split_in_words(run)} loss, before and after"
        lines.append(line(label, *np.transpose(points), dots=True, dash=True))
    return [chart("Losses", lines, {"label": "optimizer step"}, {"label": "loss, nats"})]


def metrics_table(run: TrainingRun) -> Part:
    """The metrics before and after; shares with their intervals for other samples, if their number is known."""
    rows, samples = [], run.meta.recipe.get("evaluated_samples") or 0
    for name in dict.fromkeys([*run.before, *run.after]):
        a, b = run.before.get(name, np.nan), run.after.get(name, np.nan)
        cells = [metric(name, *values) + _interval(name, *values, samples) for values in ((a, b), (b, a))]
        rows.append([name.replace("_", " "), *cells, _change(name, a, b)])
    of = f"{samples:,} {split_in_words(run)} samples, in brackets 95 % intervals for others" if samples else ""
    caption = f"Before and after, on {of or f'{split_in_words(run)} samples'}"
    return texts(caption, ["metric", "before", "after", "change"], rows)


def metric(name: str, value: float, other: float = np.nan) -> str:
    """A metric, in percent if it and the value it is compared with are shares; a dash for NaN."""
    if np.isnan(value):
        return style.DASH
    return metric_text(name, value, other).replace("-", style.MINUS)


def _interval(name: str, value: float, other: float, samples: int) -> str:
    if not samples or not metric(name, value, other).endswith("%"):
        return ""
    low, high = share_interval(value, samples, 0.95)
    return f" ({100 * low:.1f} to {100 * high:.1f})"


def _change(name: str, before: float, after: float) -> str:
    if is_share(name, before) and is_share(name, after):
        return f"{100 * (after - before):+.1f} points".replace("-", style.MINUS)
    return "" if np.isnan(after - before) else f"{after - before:+.4g}".replace("-", style.MINUS)


def _circumstances(results: Results, run: TrainingRun) -> Part:
    recipe, inside = run.meta.recipe, run.trainable_parameters
    if results.allocation is not None and results.allocation.stored_ranks == run.ranks:
        inside = results.allocation.footprint(freeze_a=run.frozen_a).trainable_parameters
    outside = run.trainable_parameters - inside
    head = f", {outside:,} of them outside the allocation" if outside > 0 else ""
    values = {
        "optimizer steps": f"{run.steps:,}" if run.steps else "none was logged",
        "time": duration_text(run.seconds),
        "peak memory": size_text(run.peak_bytes) if run.peak_bytes else "",
        "trained parameters": f"{run.trainable_parameters:,}{head}",
        "A": "frozen" if run.frozen_a else "trained",
    }
    for name in ("learning_rate", "epochs", "batch_size", "max_steps"):
        values[name.replace("_", " ")] = str(recipe.get(name) or "")
    return facts("Circumstances", values)


def _history(run: TrainingRun) -> list[Part]:
    history = run.to_frame()
    if not len(history):
        return []
    rows = np.unique(np.linspace(0, len(history) - 1, ROWS).round().astype(int))
    columns: list[Column] = [
        ("step", "step", whole),
        ("epoch", "epoch", number),
        ("loss", "loss, nats", number),
        ("eval_loss", "validation loss", number),
        ("learning_rate", "learning rate", number),
        ("grad_norm", "gradient norm", number),
    ]
    thinned = f", {len(rows)} of {len(history):,} rows" if len(rows) < len(history) else ""
    return [table(history.iloc[rows], f"History{thinned}", columns, folded=True)]
