"""TrainingMonitor: the loss and the update of every module, while `tlora.train` runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from transformers import TrainerState

from tlora.utils.front_end import has_front_end, shell
from tlora.utils.text import duration_text
from viz import style
from viz.plots import heatmap
from viz.widgets.base import LOOK, SCRIPT, PicturedWidget, answer_while_busy, for_widget, hears_while_busy, png_bytes
from viz.widgets.panels.parts import shorten
from viz.widgets.training_follower import TrainingFollower

INTERVAL = 2.0
"""Least seconds between two pictures."""
WORDS = {"stopped": "Stopped after step", "done": "Done: step", "stopping": "Stopping after step"}


@dataclass(frozen=True)
class MonitorState:
    """What is known of a training.

    Attributes
    ----------
    status : {"waiting", "training", "stopping", "stopped", "done"}
        Where it stands.
    step, planned : int
        Optimizer steps done and planned.
    seconds : float
        Since training began.
    losses, evaluations : tuple of (int, float)
        Step and training loss, step and validation loss; nats per labeled token.
    updates : dict of float
        ``||s B A||_F / ||W||_F`` at the last record, by full module name in model order; empty before the first.
    recorded : int
        Step of that record.
    first : int
        Step at which this training began; more than 0 if it was resumed.
    """

    status: str = "waiting"
    step: int = 0
    planned: int = 0
    seconds: float = 0.0
    losses: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, float], ...] = ()
    updates: dict[str, float] | None = None
    recorded: int = 0
    first: int = 0

    @property
    def line(self) -> str:
        """The state in one line of text."""
        if self.status == "waiting":
            return "Waiting for training to begin"
        losses = f": training loss {self.losses[0][1]:.3g} → {self.losses[-1][1]:.3g}" if self.losses else ""
        return f"{WORDS.get(self.status, 'Step')} {self.step:,} of {self.planned:,}{losses}"

    @property
    def detail(self) -> str:
        """Validation loss and time in one line of text."""
        done = self.step - self.first
        left = self.seconds / done * (self.planned - self.step) if done else 0.0
        running = self.status == "training"
        return style.sentence(
            f"validation loss {self.evaluations[-1][1]:.3g}" if self.evaluations else "",
            f"{duration_text(self.seconds)}{' so far' if running else ''}",
            f"{duration_text(left)} left" if running and done else "",
            f"updates at step {self.recorded:,}" if self.updates else "",
        )


class MonitorView(anywidget.AnyWidget):
    """The part in the browser: it draws its traits, and asks for a stop.

    ``state`` holds the status of a `MonitorState`, its texts and what `curve_values` returns; ``button`` its label, and
    whether it is disabled.
    """

    _esm, _css = for_widget(SCRIPT), for_widget(LOOK)
    state: Any = traitlets.Dict({"status": "waiting"}).tag(sync=True)
    button: Any = traitlets.Dict().tag(sync=True)


class TrainingMonitor(PicturedWidget, TrainingFollower):
    """A live picture of training, with a button that stops it; ``tlora.train(..., callbacks=[monitor])``.

    Call ``monitor.display()`` before training, in the same cell. The Trainer calls the monitor, which takes the place
    of the ``ModuleRecorder`` that ``train`` would add.

    Parameters
    ----------
    every : int
        Steps between two records of the modules, as in ``ModuleRecorder``.

    Attributes
    ----------
    state : MonitorState
        What the picture shows.
    widget : MonitorView
        The part in the browser.

    Notes
    -----
    The stop button works while a cell runs if kernel and front end have subshells (ipykernel 7, JupyterLab 4.4). With
    older ones it is heard when the cell is over. Interrupting the kernel works everywhere, and keeps the run as well.

    Examples
    --------
    >>> monitor = viz.TrainingMonitor(every=5)
    >>> monitor
    Waiting for training to begin
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__(every)
        self.state = MonitorState()
        self._began = self._next = 0.0
        self._first = 0
        self._handle: DisplayHandle | None = None
        self.widget = MonitorView()
        self.widget.on_msg(self._answer)
        self._set_button("Stop", disabled=True)
        answer_while_busy(self.widget)

    @property
    def line(self) -> str:
        """The run in one line of text."""
        return self.state.line

    def stop(self) -> None:
        """End training after the current step; the same as pressing the button."""
        super().stop()
        if self.state.status == "training":
            self._set_button("Stopping ...", disabled=True)

    def display(self) -> None:
        """Show the monitor; without a front end, its picture, which is replaced when training is over."""
        if has_front_end() or shell() is None:
            super().display()
            return
        self._handle = display(self._picture(), raw=True, display_id=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start over."""
        self.losses, self.evaluations = [], []
        self._first = state.global_step
        self._stopping.clear()
        self._began = time.perf_counter()
        super().on_train_begin(args, state, control, **kwargs)
        self._set_button("Stop", disabled=not hears_while_busy())
        self._show("training", state)
        self._next = 0.0  # the first loss at once

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step and draw if that is due, and end training if the button was pressed."""
        super().on_step_end(args, state, control, **kwargs)
        if time.perf_counter() >= self._next:
            self._show("stopping" if self.stopped else "training", state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw how it ended."""
        super().on_train_end(args, state, control, **kwargs)
        self._set_button("Stop", disabled=True)
        self._show("done" if state.global_step >= state.max_steps else "stopped", state)
        if self._handle is not None:
            self._handle.update(self._picture(), raw=True)

    def _answer(self, widget: Any, content: Mapping[str, Any], buffers: Any) -> None:
        """Stop when the browser asks for it."""
        if content["call"] == "stop":
            self.stop()

    def _set_button(self, label: str, disabled: bool) -> None:
        self.widget.button = {"label": label, "disabled": disabled}

    def _show(self, status: str, state: TrainerState) -> None:
        """Bring state and picture up to date, and note when the next picture is due."""
        began = time.perf_counter()
        latest = self.latest
        self.state = MonitorState(
            status=status,
            step=state.global_step,
            planned=state.max_steps,
            seconds=began - self._began,
            losses=tuple(self.losses),
            evaluations=tuple(self.evaluations),
            updates=dict(zip(latest["module"], latest["update_norm"].astype(float), strict=True)),
            recorded=self.steps[-1] if self.steps else 0,
            first=self._first,
        )
        texts = {"status": status, "line": self.state.line, "detail": self.state.detail}
        self.widget.state = texts | curve_values(self.state)
        self._next = began + INTERVAL

    def _repr_png_(self) -> bytes:
        return draw_monitor(self.state)


def curve_values(state: MonitorState) -> dict[str, Any]:
    """What the browser draws of a state, as JSON values."""
    losses, held = (
        [(step, shorten(loss)) for step, loss in points if np.isfinite(loss)]
        for points in (state.losses, state.evaluations)
    )
    frame = update_frame(state)
    rows, columns = style.projections(frame), style.layers(frame)
    cells = [
        [rows.index(row.projection), columns.index(row.layer), shorten(row.update, 3)] for row in frame.itertuples()
    ]
    arm = {"losses": losses, "held": held, "planned": state.planned}
    return {"arms": {"training": arm}, "rows": rows, "columns": columns, "cells": cells}


def update_frame(state: MonitorState) -> pd.DataFrame:
    """Layer, projection and update of each module."""
    updates = state.updates or {}
    rows = [
        (layer, role, update) for (layer, role), update in zip(module_places(updates), updates.values(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "projection", "update"]).drop_duplicates(["layer", "projection"])


def module_places(names: Iterable[str]) -> list[tuple[int, str]]:
    """Layer and role of each module, read off its full name: ``(3, "down_proj")``.

    The role is the shortest end of the name that no other module of the block has.
    """
    split = [_split_name(name.split(".")) for name in names]
    inner = {(stack, path) for stack, _, path in split}

    def role(stack: str, path: tuple[str, ...]) -> str:
        others = [other for where, other in inner if where == stack and other != path]
        ends = (path[-size:] for size in range(1, len(path) + 1))
        return ".".join(next((end for end in ends if all(other[-len(end) :] != end for other in others)), path))

    many = len({stack for stack, _, _ in split}) > 1
    roles = {(s, p): (f"{_side(s)}." if many and s else "") + role(s, p) for s, p in inner}
    return [(index, roles[stack, path]) for stack, index, path in split]


def _side(stack: str) -> str:
    """Encoder or decoder, or how the name of the stack begins."""
    parts = stack.split(".")
    return next((part for part in parts if part in ("encoder", "decoder")), parts[0])


def _split_name(parts: list[str]) -> tuple[str, int, tuple[str, ...]]:
    """What comes before the index of the block, the index, and what comes after it."""
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at == len(parts) - 1:
        return "", 0, tuple(parts)
    return ".".join(parts[:at]), int(parts[at]), tuple(parts[at + 1 :])


@style.styled
def draw_monitor(state: MonitorState) -> bytes:
    """Losses over the steps, and below the update of every module as a heat map; PNG bytes."""
    frame = update_frame(state)
    height = 1.6 + 0.25 * len(style.projections(frame)) if len(frame) else 0
    figure = style.Paper(figsize=(heatmap.WIDTH, 2.6 + height), facecolor="white", layout="constrained")
    above, *below = figure.subplots(2, 1, height_ratios=[2.6, height]) if len(frame) else [figure.subplots()]
    draw_losses(above, state)
    if below:
        frame["update"] = frame["update"].where(np.isfinite(frame["update"]))
        top = float(frame["update"].max()) if frame["update"].notna().any() else 1.0
        mesh = heatmap.draw(below[0], frame, "update", cmap=style.SEQUENTIAL, norm=Normalize(0, top or 1.0))
        heatmap.color_bar(below[0], mesh, "update, of ||W||")
    style.headline(above, state.line, state.detail if state.status != "waiting" else "")
    return png_bytes(figure)


def draw_losses(ax: Axes, state: MonitorState) -> None:
    """Training and validation loss; values that are not finite are left out."""
    colors = style.colors(2)
    for points, label, color, look in (
        (state.losses, "training", colors[0], "-"),
        (state.evaluations, "validation", colors[1], "o-"),
    ):
        finite = [(step, loss) for step, loss in points if np.isfinite(loss)]
        if finite:
            ax.plot(
                *zip(*finite, strict=True), "o" if len(finite) == 1 else look, color=color, label=label, markersize=5
            )
    ax.set(xlabel="optimizer step", xlim=(0, max(state.planned, 1) * 1.01))
    ax.xaxis.set_major_locator(style.whole_numbers(style.inches(ax)))
    style.loss_axis(ax, "loss, nats")
    style.name_lines(ax)
