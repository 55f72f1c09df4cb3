"""TrainingMonitor: the loss and the update of every module, while `tlora.train` runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import ipywidgets
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation
from mpl_toolkits.axes_grid1 import Size, make_axes_locatable
from transformers import TrainerControl, TrainerState, TrainingArguments

from tlora.training.callbacks import ModuleRecorder
from viz import style
from viz.widgets.base import WIDTH, Shown, front_end, row, stack
from viz.widgets.canvas import Headline, boxes, place_boxes, steady

NOTES = {
    "waiting": "Pass it to <code>tlora.train(..., callbacks=[monitor])</code>.",
    "training": "Interrupting the kernel stops training too. Either way the run is kept.",
    "stopping": "Ends after this step.",
}
TRAINING, VALIDATION = style.colours(2)
MOST = 19
"""Lines that the legend of the roles has room for."""
STRIPES = (None, "----", "....")
"""On the bars of the first ten roles, of the next ten, which have the same colours, and of the rest."""


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


class Followed(ModuleRecorder):
    """Records the losses of a training beside its modules, and ends it when it is asked to.

    Parameters
    ----------
    every : int
        Steps between two looks at the modules, as in ``ModuleRecorder``.

    Attributes
    ----------
    losses, evaluations : list of (int, float)
        Step and training loss, step and validation loss; nats per labelled token.

    Raises
    ------
    ValueError
        If ``every`` is not a positive integer.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__(every)
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        self._stopping = threading.Event()  # set by the thread that hears the button

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked it to end training."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End training after the step that runs."""
        self._stopping.set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note the losses."""
        for name, losses in (("loss", self.losses), ("eval_loss", self.evaluations)):
            if logs and name in logs:
                losses.append((state.global_step, float(logs[name])))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step if it is due, and end training if that was asked for."""
        super().on_step_end(args, state, control, **kwargs)
        control.should_training_stop |= self.stopped


class TrainingMonitor(Shown, Followed):
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
    The stop button is heard while a cell runs where kernel and front end have subshells (ipykernel 7, JupyterLab
    4.4). Elsewhere it is heard when the cell is over. Interrupting the kernel works everywhere, and keeps the run
    just as well. Messages are not fetched from within the callback: the kernel would have to run whatever else
    waits, other cells too, in the midst of a training step.
    """

    def __init__(self, every: int = 10, interval: float = 2.0) -> None:
        super().__init__(every)
        if not interval >= 0:
            raise ValueError(f"interval is {interval}: give the least seconds between two pictures, such as 2")
        self.interval = interval
        self.state = MonitorState()
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
        super().stop()
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
        self.losses, self.evaluations = [], []
        self._first = state.global_step
        self._stopping.clear()
        self._began, self._ended, self._next, self._spent = time.perf_counter(), 0.0, 0.0, 0.0
        super().on_train_begin(args, state, control, **kwargs)
        self._draw_for(tuple(self.names))
        self._set_button("Stop", disabled=not _hears())
        self._show("training", state)
        self._next = 0.0  # the first loss at once

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step if it is due, draw if that is due, and end training if the button was pressed."""
        began = time.perf_counter()
        super().on_step_end(args, state, control, **kwargs)
        self._spent += time.perf_counter() - began
        if began >= self._next:
            self._show("stopping" if self.stopped else "training", state)

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
        self.widget = stack(row(self.stop_button, self.note), self.image)
        self._answer_while_busy()
        self._draw_for(())

    def _draw_for(self, modules: tuple[str, ...]) -> None:
        self._canvas = self._paper(WIDTH, 4.4 if modules else 1.2)
        self._drawn = MonitorPicture(self._canvas.axes(0.95, 0, 0.5 if modules else 0.1, 0.55), modules)

    def _set_button(self, description: str, disabled: bool) -> None:
        self.stop_button.description, self.stop_button.disabled = description, disabled

    def _show(self, status: str, state: TrainerState | None = None) -> None:
        """Bring state and picture up to date, and say when the next picture is due."""
        began = time.perf_counter()
        latest = self.latest
        self.state = MonitorState(
            status=status,
            step=state.global_step if state else 0,
            planned=state.max_steps if state else 0,
            seconds=began - self._began if state else 0.0,
            losses=tuple(self.losses),
            evaluations=tuple(self.evaluations),
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
        self._next = began + self.interval


def _hears() -> bool:
    """Whether the kernel can hear a button while a cell runs."""
    kernel = getattr(get_ipython(), "kernel", None)
    return "kernel subshells" in getattr(kernel, "kernel_info", {}).get("supported_features", ())


class MonitorPicture:
    """Two panels on given axes that `update` brings up to a state, without making new artists.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Becomes the panel of the losses; that of the modules and the legends take their room from it.
    modules : tuple of str
        Full names of the modules that there will be.
    """

    @style.styled
    def __init__(self, ax: Axes, modules: tuple[str, ...]) -> None:
        self.losses = ax
        divider = make_axes_locatable(ax)
        divider.set_horizontal([*divider.get_horizontal(), Size.Fixed(_beside(modules))])
        self.bars_panel = divider.append_axes("bottom", "70%", pad=0.62)
        self.training = ax.plot([], [], color=TRAINING, linewidth=1.1, label="training")[0]
        dots: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 1.8}
        self.validation = ax.plot([], [], color=VALIDATION, label="validation", **dots)[0]
        # Bars of less than a pixel would be snapped to nothing.
        look: dict[str, Any] = {"linewidth": 0, "edgecolor": "white", "zorder": 2, "snap": False}
        self.bars = [boxes(self.bars_panel, hatch=stripes, **look) for stripes in STRIPES]
        ax.set(xlabel="optimiser step", ylabel="loss, nats")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(style.plain_numbers())
        self._ink = style.ink()["color"]
        self.legend = ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=1.4)
        self.bars_panel.set(xlabel="layer", ylabel="update, of ||W||")
        self.bars_panel.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        self.bars_panel.tick_params(axis="x", length=0)
        for panel in (ax, self.bars_panel):
            style.guide_lines(panel)
            steady(panel)
            left = ScaledTranslation(-0.74, 0, style.figure_of(ax).dpi_scale_trans)  # however long the ticks' texts
            panel.yaxis.set_label_coords(0, 0.5, transform=panel.transAxes + left)
        self.headline = Headline(ax)
        self._modules: tuple[str, ...] = ()
        self._places: np.ndarray = np.array([])
        self._stripes: np.ndarray = np.array([], int)

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        return [*self.bars, self.training, self.validation, *self.headline.artists]

    @property
    def key(self) -> Hashable:
        """What the rest of the picture depends on."""
        limits = self.losses.get_xlim(), self.losses.get_ylim(), self.bars_panel.get_ylim()
        return self.legend.get_visible(), self.legend.get_texts()[1].get_visible(), self._modules, *limits

    def update(self, state: MonitorState) -> None:
        """Show a state; what is not finite is left out."""
        for panel in (self.losses, self.bars_panel):
            panel.set_axis_off() if state.status == "waiting" else panel.set_axis_on()
        for part in (self.legend.get_texts()[1], self.legend.get_lines()[1]):
            part.set_visible(bool(state.evaluations))
        self.legend.set_visible(state.status != "waiting")
        if state.modules != self._modules:
            self._lay_out(state.modules)
        curves = [_finite(points) for points in (state.losses, state.evaluations)]
        for line, points in zip((self.training, self.validation), curves, strict=True):
            line.set_data(*points.T)
        self.training.set_marker("o" if len(curves[0]) == 1 else "")
        self.losses.set_xlim(0, max(state.planned, 1) * 1.01)
        values = np.concatenate(curves)[:, 1]
        if len(values):
            self.losses.set_ylim(*_span(values))
        updates = np.nan_to_num(np.array(state.updates), posinf=0, neginf=0)
        at, stripes = self._places[: len(updates)], self._stripes[: len(updates)]
        for kind, bars in enumerate(self.bars):
            mine = stripes == kind
            place_boxes(bars, at[mine] - 0.45, at[mine] + 0.45, 0, updates[mine])
        top = _step_up(float(updates.max(initial=0)) or 0.01)
        self.bars_panel.set_ylim(0, top)
        self.bars_panel.yaxis.set_major_formatter(_percentages(top))
        self.headline.write(_finding(state), *_detail(state))

    def _lay_out(self, modules: tuple[str, ...]) -> None:
        """Places, colours, layer labels and a legend for these modules."""
        found = places(modules)
        roles = list(dict.fromkeys(role for _, role in found))
        colours = dict(zip(roles, style.colours(len(roles)), strict=True))
        kinds = {role: min(i // 10, len(STRIPES) - 1) for i, role in enumerate(roles)}
        self._modules = modules
        blocks = [list(members) for _, members in groupby(range(len(found)), key=lambda i: found[i][0])]
        # A gap of one bar between two blocks.
        self._places = np.array([i + gap for gap, block in enumerate(blocks) for i in block], float)
        self._stripes = np.array([kinds[role] for _, role in found], int)
        for kind, bars in enumerate(self.bars):
            bars.set_facecolor([colours[role] for _, role in found if kinds[role] == kind])
        centres = [float(np.mean(self._places[block])) for block in blocks]
        step = -(-len(blocks) // 24)
        shown = slice(0, None, step)
        labels = [str(found[block[0]][0][1]) for block in blocks]
        self.bars_panel.set_xticks(centres[shown], labels[shown])
        self.bars_panel.set_xlim(-1, self._places.max(initial=0) + 1)
        handles = [
            Patch(facecolor=colour, edgecolor="white", linewidth=0, hatch=STRIPES[kinds[role]], label=role)
            for role, colour in colours.items()
        ]
        look: dict[str, Any] = {
            "handlelength": 0.9,
            "fontsize": 8,
            "frameon": False,
            "labelcolor": self._ink,
            "labelspacing": 0.25,
            "borderaxespad": 0,
        }
        # A long one begins at the bottom, so as to have the room beside the losses too.
        place, height = ("lower left", 0.0) if any(kinds.values()) else ("upper left", 1.0)
        self.bars_panel.legend(handles=style.fitting(handles, MOST), loc=place, bbox_to_anchor=(1.01, height), **look)


def _beside(modules: tuple[str, ...]) -> float:
    """Inches that the legends need to the right of the panels."""
    return 0.5 + 0.062 * max(map(len, ["validation", *(role for _, role in places(modules))]))


def places(modules: tuple[str, ...]) -> list[tuple[tuple[str, int], str]]:
    """Block (its stack, its index) and role of each module, read off its name.

    Parameters
    ----------
    modules : tuple of str
        Full module names, e.g. ``"model.layers.3.mlp.down_proj"``.

    Returns
    -------
    list of ((str, int), str)
        E.g. ``(("model.layers", 3), "down_proj")``: the role is the shortest end of the name that tells the modules
        of a block apart.
    """
    split = [_split(name.split(".")) for name in modules]
    inner = {(stack, path) for stack, _, path in split}

    def role(stack: str, path: tuple[str, ...]) -> str:
        others = [other for where, other in inner if where == stack and other != path]
        ends = (path[-size:] for size in range(1, len(path) + 1))
        return ".".join(next((end for end in ends if all(other[-len(end) :] != end for other in others)), path))

    many = len({stack for stack, _, _ in split}) > 1
    names = {(s, p): (f"{_side(s)}." if many and s else "") + role(s, p) for s, p in inner}
    return [((stack, index), names[stack, path]) for stack, index, path in split]


def _side(stack: str) -> str:
    """What the roles of a stack are told apart by: encoder or decoder, or how its name begins."""
    parts = stack.split(".")
    return next((part for part in parts if part in ("encoder", "decoder")), parts[0])


def _split(parts: list[str]) -> tuple[str, int, tuple[str, ...]]:
    """What is before the index of the block, the index, and what is after it."""
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None or at == len(parts) - 1:
        return "", 0, tuple(parts)
    return ".".join(parts[:at]), int(parts[at]), tuple(parts[at + 1 :])


def _finite(points: tuple[tuple[int, float], ...]) -> np.ndarray:
    """(points, 2): those with a finite loss."""
    pairs = np.array(points, float).reshape(-1, 2)
    return pairs[np.isfinite(pairs[:, 1])]


def _span(values: np.ndarray) -> tuple[float, float]:
    """Round limits around the values, so that they stay as they are while training goes on."""
    low, high = float(values.min()), float(values.max())
    step = 10.0 ** math.floor(math.log10(high - low or abs(high) or 1)) / 2
    low -= step / 2 if low == high else 0  # no lone point on the axis
    return step * math.floor(low / step), step * (math.floor(high / step) + 1)


def _step_up(value: float) -> float:
    """The next of 1, 2, 5, 10 ... at some power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor for factor in (1, 2, 5, 10) if factor * power > value) * power


def _percentages(top: float) -> Formatter:
    """Texts of an axis up to ``top`` that differ from tick to tick, with a power of ten where they would be long."""
    if not 1e-4 <= top <= 100:
        return FuncFormatter(lambda value, _: f"{100 * value:.2g} %")
    return PercentFormatter(1, decimals=max(0, int(np.ceil(-np.log10(100 * top / 3)))), symbol=" %")


def _finding(state: MonitorState) -> str:
    if state.status == "waiting":
        return "Waiting for training to begin"
    losses = [loss for _, loss in state.losses]
    told = f": training loss {losses[0]:.3g} → {losses[-1]:.3g}" if losses else ""
    words = {"stopped": "Stopped after step", "done": "Done: step", "stopping": "Stopping after step"}
    return f"{words.get(state.status, 'Step')} {state.step:,} of {state.planned:,}{told}"


def _detail(state: MonitorState) -> list[str]:
    if state.status == "waiting":
        return ["tlora.train(adapted, task, callbacks=[monitor])"]
    made = state.step - state.began
    left = state.seconds / made * (state.planned - state.step) if made else 0.0
    return [
        f"validation loss {state.evaluations[-1][1]:.3g}" if state.evaluations else "",
        f"{_duration(state.seconds)} so far" if state.status == "training" else _duration(state.seconds),
        f"{_duration(left)} left" if state.status == "training" and made else "",
        f"bars at step {state.recorded:,}" if state.updates else "",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
