"""Sections on what came of the allocation: training, and the use of the rank."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tlora.allocation.allocation import Allocation
from tlora.training.run import TrainingRun
from viz.plots.training import evaluated_on
from viz.reports import formatting
from viz.reports.components import Column, Part, Section, Table, Text, bar, facts, table
from viz.reports.contents import Findings
from viz.reports.rendering import rank_use_picture, training_picture

STEPS = 40
"""Most rows of the history that a page shows."""

ENERGY = 0.99
"""Share of the update that the used directions hold."""


def training(found: Findings) -> Section:
    """What training did."""
    about = "How the loss fell, and what the task's metrics were before and after."
    missing = f'run = tlora.train(adapted, task)\nrun.save("{found.folder}")'
    run = found.run
    parts: list[Part] = []
    if run is not None:
        metrics = metrics_table(run) if run.before or run.after else Text("No metrics were taken before and after.")
        parts = [*_ending(run), training_picture(run), metrics, _circumstances(run, found.allocation), *_history(run)]
    return Section("training", "Training", about, parts, missing)


def _ending(run: TrainingRun) -> list[Part]:
    """What is to be known before the curves are read, where training did not get to its end."""
    if run.diverged:
        return [
            Text("Training was stopped: the loss or a gradient was not finite. The adapter is that of the step before.")
        ]
    return [Text("Training was interrupted before its last step.")] if run.interrupted else []


def metrics_table(run: TrainingRun) -> Table:
    """The metrics before and after, side by side."""
    names = list(dict.fromkeys([*run.before, *run.after]))
    before, after = ([metrics.get(name, np.nan) for name in names] for metrics in (run.before, run.after))
    frame = pd.DataFrame(
        {
            "metric": list(map(formatting.worded, names)),
            "before": list(map(formatting.metric, names, before, after)),
            "after": list(map(formatting.metric, names, after, before)),
            "change": list(map(_change, names, before, after)),
        }
    )
    columns = [Column("metric", "metric"), *(Column(key, key, str.strip) for key in ("before", "after", "change"))]
    return table(frame, f"Before and after, on {evaluated_on(run)} samples", columns)


def _change(name: str, before: float, after: float) -> str:
    if formatting.is_share(name, before) and formatting.is_share(name, after):
        return f"{100 * (after - before):+.1f} points".replace("-", formatting.MINUS)
    return "" if np.isnan(after - before) else f"{after - before:+.4g}".replace("-", formatting.MINUS)


def _circumstances(run: TrainingRun, allocation: Allocation | None) -> Table:
    recipe = run.meta.recipe
    inside = run.trainable_parameters
    if allocation is not None and allocation.ranks == run.ranks:  # else another allocation was trained
        inside = allocation.footprint(freeze_a=run.frozen_a).trainable_parameters
    outside = run.trainable_parameters - inside
    head = f", {outside:,} of them outside of the allocation" if outside > 0 else ""
    values = {
        "optimiser steps": f"{run.steps:,}" if run.steps else "none was logged",
        "time": formatting.duration(run.seconds),
        "trained parameters": f"{run.trainable_parameters:,}{head}",
        "A": "frozen" if run.frozen_a else "trained",
    }
    shown = ("learning_rate", "epochs", "batch_size", "max_steps")
    return facts(
        "Circumstances", values | {formatting.worded(key): str(recipe[key]) for key in shown if recipe.get(key)}
    )


def _history(run: TrainingRun) -> list[Part]:
    history = run.to_frame()
    if not len(history):
        return []
    rows = np.unique(np.linspace(0, len(history) - 1, STEPS).round().astype(int))
    columns = [
        Column("step", "step", formatting.whole),
        Column("epoch", "epoch", formatting.number),
        Column("loss", "loss, nats", formatting.number),
        Column("eval_loss", "validation loss", formatting.number),
        Column("learning_rate", "learning rate", formatting.number),
        Column("grad_norm", "gradient norm", formatting.number),
    ]
    thinned = f", {len(rows)} of {len(history):,} rows" if len(rows) < len(history) else ""
    return [table(history.iloc[rows], f"History{thinned}", columns, folded=True)]


def rank_use(found: Findings) -> Section:
    """Whether the rank that was given was used."""
    about = (
        f"How many directions the trained update s B A needs for {formatting.percent(ENERGY)} of its squared norm, "
        "against the rank that the module was given. Rank that is not used can go elsewhere in the next allocation."
    )
    missing = f'run = tlora.train(adapted, task)\nrun.save("{found.folder}")'
    run = found.run
    if run is None or not run.ranks:
        return Section("rank-use", "Was the rank used?", about, missing=missing)
    use = run.rank_use(ENERGY)
    finding = used_rank(use)
    parts: list[Part] = [Text(f"{finding}.")]
    if found.places and set(use["module"]) <= found.places[0].keys():
        layers, projections = found.places
        use = use.assign(layer=use["module"].map(layers), projection=use["module"].map(projections))
        detail = f"directions that hold {formatting.percent(ENERGY)} of the update"
        parts = [rank_use_picture(use, finding, detail), _use_by_projection(use)]
    caption = f"All {formatting.several(len(use), 'module')}"
    everything = table(use, caption, [Column("module", "module"), *USE_COLUMNS], folded=True)
    return Section("rank-use", "Was the rank used?", about, [*parts, _extremes(use), everything])


def used_rank(use: pd.DataFrame) -> str:
    """The finding in words: ``"1,234 of 1,680 ranks are used (73 %)"``."""
    used, given = int(use["used_rank"].sum()), int(use["rank"].sum())
    return f"{used:,} of {given:,} ranks are used ({formatting.percent(used / given)})"


USE_COLUMNS = [
    Column("rank", "rank", formatting.whole),
    Column("used_rank", "used", formatting.whole),
    Column("use", "used / given", bar),
    Column("effective_rank", "effective rank", formatting.number),
    Column("update_norm", "norm of s B A", formatting.number),
]


def _use_by_projection(use: pd.DataFrame) -> Table:
    groups = use.groupby("projection", sort=False)
    frame = groups.agg(
        modules=("rank", "size"),
        rank=("rank", "sum"),
        used_rank=("used_rank", "sum"),
        effective_rank=("effective_rank", "mean"),
        update_norm=("update_norm", "mean"),
    ).reset_index()
    frame = frame.assign(use=frame["used_rank"] / frame["rank"])
    columns = [Column("projection", "projection"), Column("modules", "modules", formatting.whole), *USE_COLUMNS]
    return table(frame, "By projection: sums of ranks, means of the rest", columns)


def _extremes(use: pd.DataFrame) -> Text:
    full, idle = int((use["used_rank"] == use["rank"]).sum()), int((use["used_rank"] == 0).sum())
    still = f", and {idle:,} did not move at all" if idle else ""
    return Text(f"{full:,} of {formatting.several(len(use), 'module')} use all of their rank{still}.")
