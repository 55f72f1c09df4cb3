"""TrainingMonitor: the loss and the update of every module, while `tlora.train` runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import ipywidgets
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from transformers import TrainerControl, TrainerState, TrainingArguments

from tlora.training.callbacks import ModuleRecorder
from viz.widgets.base import WIDTH, Shown, front_end, row
from viz.widgets.monitor_picture import MonitorPicture

SHARE = 0.015
"""Most of the time of training that is spent on drawing."""
NOTES = {
    "waiting": "Pass it to <code>tlora.train(..., callbacks=[monitor])</code>.",
    "training": "Interrupting the kernel stops training too. Either way the run is kept.",
    "stopping": "Ends after this step.",
}


@dataclass(frozen=True)
class MonitorState:
    """What is known of a training run.

    Attributes
    ----------
    status : {"waiting", "training", "stopping", "stopped", "done"}
        Where it stands.
    step, planned : int
        Optimiser steps done and to do.
    seconds : float
        Since training began.
    losses, evaluations : tuple of (int, float)
        Step and training loss, step and validation loss; nats per labelled token.
    modules : tuple of str
        Full module names, in model order.
    updates : tuple of float
        ``||s B A||_F / ||W||_F`` of each at the last record; empty before the first.
    recorded : int
        Step of that record.
    began : int
        Step at which this training began; more than 0 where it was resumed.
    """

    status: str = "waiting"
    step: int = 0
    planned: int = 0
    seconds: float = 0.0
    losses: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, float], ...] = ()
    modules: tuple[str, ...] = ()
    updates: tuple[float, ...] = ()
    recorded: int = 0
    began: int = 0


class TrainingMonitor(Shown, ModuleRecorder):
    """A live picture of training, with a button that stops it; ``tlora.train(..., callbacks=[monitor])``.

    ``monitor.display()`` in the cell that trains, before it does. The Trainer calls the monitor, which takes the
    place of the ``ModuleRecorder`` that ``train`` would add.

    Parameters
    ----------
    every : int
        Steps between two looks at the modules, as in ``ModuleRecorder``.
    interval : float
        Least seconds between two pictures.

    Attributes
    ----------
    state : MonitorState
        What the picture shows.
    cost : float
        Part of the time of training that went into looking and drawing.

    Raises
    ------
    ValueError
        If ``every`` is not a positive integer or ``interval`` is negative.

    Notes
    -----
    A picture waits until drawing has taken less than 1.5 % of the time, so that a slow machine gets fewer of them.

    The stop button is heard while a cell runs where kernel and front end have subshells (ipykernel 7, JupyterLab
    4.4). Elsewhere it is heard when the cell is over. Interrupting the kernel works everywhere, and keeps the run
    just as well. Messages are not fetched from within the callback: the kernel would have to run whatever else
    waits, other cells too, in the midst of a training step.
    """

    def __init__(self, every: int = 10, interval: float = 1.0) -> None:
        super().__init__(every)
        if not interval >= 0:
            raise ValueError(f"interval is {interval}: give the least seconds between two pictures, such as 1")
        self.interval = interval
        self.state = MonitorState()
        self._losses: list[tuple[int, float]] = []
        self._evaluations: list[tuple[int, float]] = []
        self._stopping = threading.Event()  # set by the thread that hears the button
        self._began = self._ended = self._next = self._spent = 0.0
        self._first = 0
        self._handle: DisplayHandle | None = None
        self._build()
        self._show("waiting")

    @property
    def cost(self) -> float:
        """Part of the time of training that went into looking and drawing; 0 before it begins."""
        seconds = (self._ended or time.perf_counter()) - self._began
        return 0.0 if self.state.status == "waiting" else self._spent / seconds

    @property
    def line(self) -> str:
        """The run in one line of text."""
        return self._drawn.headline.finding.get_text()

    def stop(self) -> None:
        """End training after the step that runs; the same as pressing the button."""
        self._stopping.set()
        if not self._ended:
            self._set_button("Stopping ...", disabled=True)

    def render(self, state: MonitorState, ax: Axes) -> Axes:
        """Draw a state.

        Parameters
        ----------
        state : MonitorState
            For example ``monitor.state``.
        ax : matplotlib.axes.Axes
            Where to draw; the bars and the legends take their room from it.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the losses.
        """
        MonitorPicture(ax, state.modules).update(state)
        return ax

    def display(self) -> None:
        """Show the monitor; where there is no front end, its picture, which is replaced when training is over."""
        if front_end() or get_ipython() is None:
            super().display()
            return
        self._handle = display(self._picture(), raw=True, display_id=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start afresh."""
        self._losses, self._evaluations = [], []
        self._first = state.global_step
        self._stopping.clear()
        self._began, self._ended, self._next, self._spent = time.perf_counter(), 0.0, 0.0, 0.0
        super().on_train_begin(args, state, control, **kwargs)
        self._draw_for(tuple(self.names))
        self._set_button("Stop", disabled=not _hears())
        self._show("training", state)
        self._next = 0.0  # the first loss at once

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the losses."""
        for name, losses in (("loss", self._losses), ("eval_loss", self._evaluations)):
            if logs and name in logs:
                losses.append((state.global_step, float(logs[name])))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step if it is due, draw if that is due, and end training if the button was pressed."""
        began = time.perf_counter()
        super().on_step_end(args, state, control, **kwargs)
        self._spent += time.perf_counter() - began
        if self._stopping.is_set():
            control.should_training_stop = True
        if began >= self._next:
            self._show("stopping" if self._stopping.is_set() else "training", state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw how it ended."""
        super().on_train_end(args, state, control, **kwargs)
        self._set_button("Stop", disabled=True)
        self._show("done" if state.global_step >= state.max_steps else "stopped", state)
        self._ended = time.perf_counter()
        self.note.value = f"Watching took {100 * self.cost:.2g} % of the time of training."
        if self._handle is not None:
            self._handle.update(self._picture(), raw=True)

    def _build(self) -> None:
        self.stop_button = ipywidgets.Button(icon="stop", tooltip="End training after this step and keep the run")
        self.stop_button.on_click(lambda _: self.stop())
        self._set_button("Stop", disabled=True)
        self.note = ipywidgets.HTML()
        self.image = ipywidgets.Image(format="png")
        self.widget = ipywidgets.VBox([row(self.stop_button, self.note), self.image])
        self._draw_for(())

    def _draw_for(self, modules: tuple[str, ...]) -> None:
        self._canvas = self._paper(WIDTH, 4.4 if modules else 1.2)
        self._drawn = MonitorPicture(self._canvas.axes(0.95, 0, 0.5 if modules else 0.1, 0.55), modules)

    def _set_button(self, description: str, disabled: bool) -> None:
        self.stop_button.description, self.stop_button.disabled = description, disabled
        # From 7.4 on ipykernel answers where a widget was last changed: in the thread that is busy with the cell.
        # Without this note of it, a click goes where the front end sends it.
        if self.stop_button.comm is not None:  # closed with all widgets: training goes on without the button
            vars(self.stop_button.comm).pop("_reply_subshell_id", None)

    def _show(self, status: str, state: TrainerState | None = None) -> None:
        """Bring state and picture up to date, and say when the next picture is due."""
        began = time.perf_counter()
        latest = self.latest
        self.state = MonitorState(
            status=status,
            step=state.global_step if state else 0,
            planned=state.max_steps if state else 0,
            seconds=began - self._began if state else 0.0,
            losses=tuple(self._losses),
            evaluations=tuple(self._evaluations),
            modules=tuple(self.names),
            updates=tuple(latest["update_norm"]),
            recorded=self.steps[-1] if self.steps else 0,
            began=self._first,
        )
        self._drawn.update(self.state)
        self.image.value = self._canvas.png(self._drawn.moving, self._drawn.key)
        self.note.value = NOTES.get(status, "")
        took = time.perf_counter() - began
        self._spent += took
        self._next = began + max(self.interval, took / SHARE)


def _hears() -> bool:
    """Whether the kernel can hear a button while a cell runs."""
    kernel = getattr(get_ipython(), "kernel", None)
    return "kernel subshells" in getattr(kernel, "kernel_info", {}).get("supported_features", ())
