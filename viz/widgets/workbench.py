"""Workbench: a map of an allocation to inspect and edit, with all that is known about each module."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, SupportsIndex

import anywidget
import numpy as np
import traitlets

from tlora.adapters.compression import Compression
from tlora.adapters.files import earlier_files
from tlora.allocation.allocation import Allocation
from tlora.allocation.footprint import BYTES, footprint, size_text
from tlora.allocation.stability import allocation_stability
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.calibration.sensitivity import Sensitivity
from tlora.comparison.race_result import Race
from tlora.resource_estimate import ResourceEstimate
from tlora.results import result_file
from tlora.subspaces.alignment import align, overlap_with_neighbors
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.training.run import TrainingRun
from tlora.utils.files import check_folder, read_json, replace_file, replace_files
from tlora.utils.validation import check_type
from viz import style
from viz.plots.allocation import allocation_size, finding, outline, plot_allocation
from viz.widgets.allocation import (
    DEFAULTS,
    EDIT,
    EXCLUDE,
    SCORE,
    SOURCE,
    AllocationState,
    Limit,
    allocated,
    arguments,
    changes_in_words,
    code,
    decided,
    settled,
    starting_state,
    within,
)
from viz.widgets.base import Shown
from viz.widgets.canvas import Canvas
from viz.widgets.module_picture import ModulePicture
from viz.widgets.race import LiveRace
from viz.widgets.spectrum import ENERGY, VARIANCE, shares_of

FOLDER = Path(__file__).parent
SCRIPT, LOOK, PAGE = ((FOLDER / f"workbench.{kind}").read_text("utf-8") for kind in ("js", "css", "html"))
SESSION = "session.json"
RESULTS: dict[str, Any] = {
    "subspaces": Subspaces, "capture": GradientCapture, "other": Subspaces, "run": TrainingRun,
    "compression": Compression, "estimate": ResourceEstimate,
}  # fmt: skip
"""Results beside the scores that a workbench can hold, by the name of the argument."""
STEPS = 20
"""Steps of the temperature from 0 to 1."""
RESAMPLES = 200
"""Bootstrap resamples behind the distribution of a rank."""
PARTS = 8
"""Parts that they are made in: between two of them, the kernel can answer other requests."""
TRAINING: Mapping[str, Any] = {"seconds": 300, "seeds": [0]}
"""Default arguments of the race between the kept and the new allocation."""
UNBOUND = 256
"""Largest rank on a control where no bases limit it."""
SELECTED = "#e07b00"
"""Colour of the frame around a selected module, as in the browser."""
HELD_OUT = 32
"""Validation samples that the captured gradient is measured on."""

QUERY_OR_VALUE = re.compile(r"(^|[._])(q|v|wq|wv|query|value)(_proj|_lin|_linear)?$")
ATTENTION = re.compile(r"att(entio)?n|(^|[._])[qkvo]_proj$", re.IGNORECASE)
PRESETS = {
    "uniform": "The same rank for every module",
    "q and v": "The same rank for queries and values, none elsewhere; the budget stays",
    "attention": "Ranks by score within attention, none elsewhere; the budget stays",
    "by score": "Ranks in proportion to the scores, nothing by hand",
    "default": "All options of tlora.allocate as by default",
}
"""Presets, and what each of them does."""


class Map(anywidget.AnyWidget):
    """The part in the browser: draws what it is told, and sends back what the user wants."""

    _esm, _css = SCRIPT, LOOK
    about: Any = traitlets.Dict().tag(sync=True)
    shown: Any = traitlets.Dict().tag(sync=True)
    tab: Any = traitlets.Unicode("rank").tag(sync=True)
    selected: Any = traitlets.List().tag(sync=True)
    picture: Any = traitlets.Bytes().tag(sync=True)
    training: Any = traitlets.Dict().tag(sync=True)


class Workbench(Shown):
    """The ranks of all modules as a map: point at a module to read about it, drag it to change its rank.

    Whatever is changed, the other modules share the rest of the same budget. ``workbench.allocation`` is what is
    shown: what the next cell attaches and trains.

    Parameters
    ----------
    calibration : Calibration or Sensitivity
        Where the scores come from.
    subspaces : Subspaces, optional
        The bases that will be attached: no rank goes beyond theirs, and their spectra are shown.
    model, task : optional
        With both, **Train both** races the kept and the new allocation.
    run : TrainingRun, optional
        A training on this model: how far each module moved, and how much of its rank it used.
    compression : Compression, optional
        Of an adapter that was trained on this model: the rank that it needed stands beside the rank that is given.
    capture : GradientCapture, optional
        Of held-out samples. The kind of the subspaces is shown, or its first kind.
    other : Subspaces, optional
        Of another task, to show the overlap with it.
    estimate : ResourceEstimate, optional
        Of this model, from `tlora.estimate`: the peak memory of training stands among the costs.
    training : mapping, optional
        Arguments of `tlora.race` for **Train both**, but ``callbacks``, ``watch`` and ``progress``; by default
        ``{"seconds": 300, "seeds": [0]}``.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with.

    Attributes
    ----------
    state : AllocationState
        Frozen. It decides the allocation, and holds the kept one.
    race : Race or None
        What the last training of both has found, when it has ended: ``workbench.race.winner.save(folder)``.
    widget : Map
        The part in the browser.

    Raises
    ------
    TypeError, KeyError, ValueError
        If an argument is something else, `tlora.allocate` refuses the options, or the results are of different modules.
    """

    def __init__(
        self,
        calibration: Calibration | Sensitivity,
        subspaces: Subspaces | None = None,
        *,
        model: Any = None,
        task: Any = None,
        run: TrainingRun | None = None,
        compression: Compression | None = None,
        capture: GradientCapture | None = None,
        other: Subspaces | None = None,
        estimate: ResourceEstimate | None = None,
        training: Mapping[str, Any] | None = None,
        rank: SupportsIndex = 8,
        **options: Any,
    ) -> None:
        self.calibration = calibration
        self.model, self.task = model, task
        self.training = TRAINING if training is None else dict(training)
        self._live: LiveRace | None = None
        self.sensitivity = calibration.sensitivity if isinstance(calibration, Calibration) else calibration
        self.names = check_type(self.sensitivity, Sensitivity, "what tlora.calibrate returned").names
        self.subspaces, self.run, self.capture, self.other, self.estimate = subspaces, run, capture, other, estimate
        self.compression = compression
        self._check_parts()
        bound = None if subspaces is None else subspaces.max_rank
        state = starting_state(self.sensitivity, bound, rank, **options)
        self._bound = bound
        self._result = self.result(state)
        self.state = replace(state, kept=self._result)
        self._past: list[AllocationState] = []
        self._future: list[AllocationState] = []
        self._gesture: str | None = None  # of the last step
        self._gesture_now: str | None = None  # of the request that is answered
        self._resamples: tuple[Allocation, list[np.ndarray]] = self._result, []  # of which allocation; by part
        self._lock = threading.RLock()  # requests come in a thread of their own while a cell runs
        self.widget = Map(about=self._about(), shown=self._shown(), selected=[0])
        self.widget.on_msg(self._heard)
        self._answer_while_busy()

    @property
    def allocation(self) -> Allocation:
        """What is shown."""
        return self._result

    @property
    def kept(self) -> Allocation:
        """The allocation from which changes are counted."""
        assert self.state.kept is not None
        return self.state.kept

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `tlora.allocate` for this allocation, those that are not the default; edits come on top."""
        return arguments(self.sensitivity, self.state)

    @property
    def selected(self) -> list[str]:
        """Full names of the selected modules."""
        return [self.names[i] for i in self.widget.selected]

    @property
    def line(self) -> str:
        """The allocation in one line of text."""
        return f"{finding(self._result)}: {self.code()}"

    def result(self, state: AllocationState) -> Allocation:
        """The allocation of ``state``: `tlora.allocate`, then its edits."""
        return allocated(self.sensitivity, state, self._bound)

    def code(self, source: str = SOURCE) -> str:
        """The allocation as one line of Python; ``source`` is the expression for the sensitivity."""
        return code(self.sensitivity, self.state, source)

    def select(self, *names: str) -> None:
        """Select modules by their full ``names``; KeyError if there is no such module."""
        self.widget.selected = [self.names.index(name) for name in self._known(names)]

    def set(self, **options: Any) -> None:
        """Change arguments (``options``) of `tlora.allocate`, e.g. ``set(temperature=0.5)``; ranks by hand stay.

        Raises
        ------
        TypeError, KeyError, ValueError
            If `tlora.allocate` refuses them. Nothing changes then.
        """
        if unknown := sorted(options.keys() - {"rank", *DEFAULTS}):
            raise TypeError(f"allocate() has no option {unknown[0]!r}: choose from rank, {', '.join(DEFAULTS)}")
        if "exclude_modules" in options:  # as full names
            asked = {"rank": self.state.rank, **options}
            out = {name: asked[name] for name in ("rank", "exclude_modules")}
            options["exclude_modules"] = starting_state(self.sensitivity, None, **out).exclude_modules
        if "max_rank" in options:
            self.result(replace(self.state, **options))  # refuses what is none
            options["max_rank"] = within(options["max_rank"], self._bound, self.names)
        self._move(replace(self.state, **options))
        if "score" in options:  # its tab shows them
            self.widget.about = self._about()

    def set_rank(self, names: str | Collection[str], rank: int) -> None:
        """Set the rank of one or several modules; the others share what is left of the budget.

        Parameters
        ----------
        names : str or collection of str
            Full module names.
        rank : int
            Of each of them.

        Raises
        ------
        KeyError, ValueError
            If there is no such module, or budget, ``min_rank`` or ``max_rank`` do not allow it. Nothing changes then.
        """
        self._decide(names, EDIT, rank)

    def release(self, names: str | Collection[str]) -> None:
        """Give the modules ``names`` back to their scores: no rank by hand, not left out; raises as `set_rank`."""
        self._decide(names, SCORE)

    def leave_out(self, names: str | Collection[str]) -> None:
        """Give the modules ``names`` no adapter, and their part of the budget to the others; raises as `set_rank`."""
        self._decide(names, EXCLUDE)

    def preset(self, name: str) -> None:
        """Go to the preset ``name``, e.g. ``"uniform"``; rank and what was kept stay. ValueError if it does not fit."""
        self._move(preset(name, self.state, self.sensitivity, self._bound))

    def keep(self) -> None:
        """Keep what is shown: changes are counted from it."""
        self._move(replace(self.state, kept=self._result))

    def undo(self) -> None:
        """Take the last change back, if there is one."""
        self._step(self._past, self._future)

    def redo(self) -> None:
        """Repeat the change that was taken back last, if there is one."""
        self._step(self._future, self._past)

    @property
    def race(self) -> Race | None:
        """The last race of the kept and the new allocation, when it has ended."""
        return None if self._live is None else self._live.result

    def train(self, **options: Any) -> None:
        """Train the kept and the new allocation in a thread: see `tlora.race`. The map may change meanwhile.

        Parameters
        ----------
        **options
            Arguments of `tlora.race`, in place of those that the workbench was made with.

        Raises
        ------
        ValueError
            If model or task are missing, nothing differs from what was kept, or both are being trained already.
        """
        missing = [name for name in ("model", "task") if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"Training needs {' and '.join(missing)}: make the workbench with "
                f"viz.Workbench(calibration, subspaces, {', '.join(f'{name}={name}' for name in missing)})"
            )
        if self._live is not None and self._live.running:
            raise ValueError("Both are being trained already: stop them, or wait")
        if self.kept.ranks == self._result.ranks and self.kept.scalings == self._result.scalings:
            raise ValueError("Nothing differs from what was kept: change a rank or a control first")
        arms = {"kept": self.kept, "new": self._result}
        chosen = {"subspaces": self.subspaces, **(options or self.training)}
        self._live = LiveRace(self._follow, self.model, self.task, arms, **chosen)

    def stop(self, name: str) -> None:
        """End the training of ``name``, ``"kept"`` or ``"new"``, after the step that runs; the race goes on."""
        if self._live is not None:
            self._live.stop(name)

    def rank_distribution(self, name: str) -> np.ndarray:
        """Ranks of a module in allocations from bootstrap resamples of the calibration samples.

        Parameters
        ----------
        name : str
            Full module name.

        Returns
        -------
        (200,) int array
            One a resample.

        Raises
        ------
        KeyError
            If there is no such module, or it is left out.
        ValueError
            If there are fewer than two samples.
        """
        if name not in self._result.scores:
            raise KeyError(f"{name!r} has no rank in this allocation")
        while len(self._resampled_parts()) < PARTS:
            self._resample_part()
        return np.concatenate(self._resampled_parts())[:, list(self._result.scores).index(name)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the session to a folder: the results, the allocation, the kept one, and what is selected.

        Parameters
        ----------
        path : path-like
            The folder; an earlier session there is replaced.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder holds something else.
        OSError
            If it cannot be written.
        """
        with self._lock:
            state = {f.name: getattr(self.state, f.name) for f in fields(self.state) if f.name != "kept"}
            head = {
                "state": state,
                "selected": self.selected,
                "tab": self.widget.tab,
                "of": type(self.calibration).__name__,
            }
            results = {name: getattr(self, name) for name in ("calibration", *RESULTS, "kept")}
        check_folder(Path(path), "calibration.safetensors")
        earlier = [*map(result_file, results), *(Path("run", file) for file in earlier_files(Path(path, "run")))]
        with replace_files(path, last=SESSION, earlier=earlier) as folder:
            for name, result in results.items():
                if result is not None:
                    result.save(folder / name)
            (folder / SESSION).write_text(json.dumps(head, indent=1))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Workbench:
        """Open a session that `save` wrote. Changes made before that cannot be undone.

        Parameters
        ----------
        path : path-like
            The folder.

        Returns
        -------
        Workbench

        Raises
        ------
        FileNotFoundError
            If there is no session.
        """
        folder = Path(path)
        head = read_json(folder / SESSION)
        kinds = RESULTS | {"calibration": Calibration if head["of"] == "Calibration" else Sensitivity}
        places = {name: folder / (name if kind is TrainingRun else result_file(name)) for name, kind in kinds.items()}
        found = {name: kind.load(places[name]) for name, kind in kinds.items() if places[name].exists()}
        it = Workbench(**found, rank=head["state"]["rank"])
        state = head["state"] | {"exclude_modules": tuple(head["state"]["exclude_modules"])}
        it._show(AllocationState(**state, kept=Allocation.load(folder / "kept")))
        it.select(*head["selected"])
        it.widget.tab = head["tab"]
        return it

    def page(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML file that shows the map without a kernel and without a network.

        Hover, tabs, selection and temperature work: the allocation at every step of the temperature is in it.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        pathlib.Path
            The file.
        """
        with replace_file(path) as file:
            file.write_text(self._page(), encoding="utf-8")
        return Path(path)

    def module_picture(self, name: str) -> bytes:
        """The spectrum of the module ``name``, its captured gradient and the distribution of its rank, as PNG bytes."""
        known = len(self._resampled_parts()) == PARTS and name in self._result.ranks
        resampled = self.rank_distribution(name) if known else None
        return self._module_picture.png(name, self._result.ranks.get(name, 0), resampled)

    @functools.cached_property
    def _module_picture(self) -> ModulePicture:
        return ModulePicture(self._curves, self.sensitivity, self.subspaces, self.most)

    @property
    def most(self) -> int:
        """Largest rank that a control offers."""
        return self._bound or min(UNBOUND, max(min(shape) for shape in self.sensitivity.shapes.values()))

    @functools.cached_property
    def _curves(self) -> dict[str, list[list[float | None]]]:
        """Shares by rank from 1 on of every module, in model order, of what is known."""
        curves: dict[str, Mapping[str, Any]] = {}
        if self.subspaces is not None:
            shares = shares_of(self.subspaces)
            curves = {
                what: {n: v.cumsum() for n, v in shares[what].items()} for what in (ENERGY, VARIANCE) if what in shares
            }
            curves["neighbours"] = overlap_with_neighbors(self.subspaces)
        if self.capture is not None:
            kind = self.subspaces.kind if self.subspaces is not None else ""
            curves["captured"] = captured_curves(self.capture, kind, self.most)
        if self.other is not None and self.subspaces is not None:
            most = min(len(rows) for side in (self.subspaces, self.other) for rows in side.bases.values())
            curves["overlap"] = align(self.subspaces, self.other, most, labels=("this task", "the other")).overlaps
        return {what: [_rounded(of.get(name, ())) for name in self.names] for what, of in curves.items()}

    def _check_parts(self) -> None:
        for name, kind in RESULTS.items():
            part = getattr(self, name)
            if part is None:
                continue
            if not isinstance(part, kind):
                raise TypeError(f"{name} is a {type(part).__name__}: pass a {kind.__name__}")
            modules: Collection[str] = part.ranks if isinstance(part, TrainingRun) else part.shapes
            if strange := [module for module in modules if module not in self.sensitivity.shapes]:
                raise ValueError(f"{name} is of another model: {strange[0]} is not in the calibration")
        if (found := self.subspaces) is None:
            return
        if list(found.shapes) != self.names:
            raise ValueError(
                f"the subspaces are of {len(found.shapes)} modules and the sensitivity of "
                f"{len(self.names)} others: pass two results of one calibration"
            )
        short = [n for n, basis in found.bases.items() if len(basis) < min(found.max_rank, *found.shapes[n])]
        if short:
            raise ValueError(
                f"the subspaces have {found.max_rank} directions in some modules and {len(found.bases[short[0]])} in "
                f"{short[0]}, which leaves its rank no room: make them with one number, "
                f"tlora.task_subspaces(..., max_rank={found.max_rank})"
            )

    def _known(self, names: str | Collection[str]) -> list[str]:
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self.sensitivity.shapes:
                raise KeyError(f"{name!r} is not a module here: there are {len(self.names)}, e.g. {self.names[0]!r}")
        return names

    def _decide(self, names: str | Collection[str], way: str, rank: int = 0) -> None:
        self._move(decided(self.state, self._known(names), way, rank))

    def _move(self, state: AllocationState) -> None:
        """Go to a state as one step to undo; within one gesture of the user, the step before grows."""
        with self._lock:
            before, gesture = self.state, self._gesture_now
            self._result = self.result(state)
            self.state = settled(state, self._result)
            if gesture is None or gesture != self._gesture:
                self._past.append(before)
            self._gesture = gesture
            self._future.clear()
            self._tell()

    def _step(self, source: list[AllocationState], target: list[AllocationState]) -> None:
        with self._lock:
            if source:
                target.append(self.state)
                self._gesture = None
                self._show(source.pop())

    def _show(self, state: AllocationState) -> None:
        self._result, self.state = self.result(state), state
        self._tell()

    def _tell(self, message: str = "") -> None:
        """Show the state; with a message always again, so that a control whose value was refused shows the old one."""
        shown, told = self._shown(), self.widget.shown.get("told", 0)
        self.widget.shown = shown | {"message": message or shown["message"], "told": told + bool(message)}

    def _heard(self, widget: Any, content: Mapping[str, Any], buffers: Any) -> None:
        """Do what the browser asks for, and say that it is done: the browser sends one request at a time."""
        with self._lock:
            self._gesture_now = content.get("gesture")
            try:
                self._actions[content["call"]](**content.get("args", {}))
            except (KeyError, ValueError, OSError) as refusal:
                self._tell(sentence(str(refusal.args[-1] if refusal.args else refusal)))
            finally:
                self._gesture_now = None
                more = content["call"] == "resample" and 0 < len(self._resampled_parts()) < PARTS
                self.widget.send({"answer": content.get("id"), "more": more})

    @property
    def _actions(self) -> dict[str, Callable[..., None]]:
        def by_position(action: Callable[..., None]) -> Callable[..., None]:
            return lambda modules, **args: action([self.names[i] for i in modules], **args)

        return {
            "set": self.set,
            "set_rank": by_position(self._drag),
            "release": by_position(self.release),
            "leave_out": by_position(self.leave_out),
            "preset": self.preset,
            "keep": self.keep,
            "undo": self.undo,
            "redo": self.redo,
            "look": self._look,
            "resample": self._resample,
            "save": self._save,
            "train": self.train,
            "stop": self.stop,
            "save_winner": self._save_winner,
            "page": lambda: self.widget.send({"file": "allocation.html", "text": self._page()}),
        }

    def _drag(self, names: list[str], rank: int) -> None:
        """Set ranks, or the nearest that are possible, and say so."""
        try:
            self.set_rank(names, rank)
        except ValueError as refusal:
            if (nearest := self._nearest(names, rank)) is None:
                raise
            self.set_rank(names, nearest)
            self._tell(sentence(str(refusal)))

    def _nearest(self, names: list[str], rank: int) -> int | None:
        """The possible rank that is nearest to ``rank``, on the side of the present one; None if there is none."""
        good, bad = self._result.ranks.get(names[0], 1), rank
        state, best = self.state, None
        while abs(bad - good) > 1 or best is None:
            rank = (good + bad) // 2 if best is not None else good
            try:
                self.result(decided(state, names, EDIT, rank))
            except ValueError:
                if best is None:
                    return None
                bad = rank
            else:
                good = best = rank
        return best

    def _look(self) -> None:
        if self.widget.selected:
            self.widget.picture = self.module_picture(self.selected[-1])

    def _resample(self) -> None:
        """One part more of the resamples; after the last, the picture with them."""
        if len(self.sensitivity.per_sample) < 2 or len(self._resampled_parts()) == PARTS:
            return
        self._resample_part()
        if len(self._resampled_parts()) == PARTS:
            self._look()

    def _resampled_parts(self) -> list[np.ndarray]:
        """Ranks in the resamples made so far of the allocation that is shown."""
        if self._resamples[0] is not self._result:
            self._resamples = self._result, []
        return self._resamples[1]

    def _resample_part(self) -> None:
        parts, size = self._resampled_parts(), RESAMPLES // PARTS
        made = allocation_stability(self.sensitivity, self._result, resamples=size, seed=len(parts))
        parts.append(made.ranks.numpy())

    def _follow(self, state: dict[str, Any]) -> None:
        """Show how training stands; called in its thread."""
        for arm in state["arms"].values():
            arm["updates"] = _rounded([arm["updates"].get(name, np.nan) for name in self.names])
        self.widget.training = state

    def _save_winner(self, path: str = "workbench-winner") -> None:
        assert self.race is not None  # there is no button before
        self._tell(
            f"Saved: tlora.load({str(self.race.winner.save(path))!r}, model) puts {self.race.leader} on the model."
        )

    def _save(self, path: str = "workbench-session") -> None:
        self._tell(f"Saved: viz.Workbench.load({str(self.save(path))!r}) opens it again.")

    @style.styled
    def _repr_png_(self) -> bytes:
        """The ranks as a picture, for readers without the browser's part."""
        canvas = Canvas(*allocation_size(self._result))
        canvas.figure.set_layout_engine("constrained")
        ax = plot_allocation(self._result, ax=canvas.figure.add_subplot())
        outline(ax, self._result, self.selected, SELECTED)
        return canvas.png([])

    def _page(self) -> str:
        shown = [self._shown(replace(self.state, temperature=step / STEPS)) for step in range(STEPS + 1)]
        data = {"about": self.widget.about, "steps": shown, "shown": self._shown(), "tab": self.widget.tab}
        data |= {"selected": self.widget.selected}
        text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
        title = style.source(self._result.meta) or "allocation"
        return (
            PAGE.replace("$TITLE", html.escape(title))
            .replace("$STYLE", LOOK)
            .replace("$SCRIPT", SCRIPT)
            .replace("$DATA", text)
        )

    def _about(self) -> dict[str, Any]:
        """What stays as it is: the modules, what is known of them, and the tabs that show it."""
        sensitivity = self.sensitivity
        rows = list(dict.fromkeys(sensitivity.projections.values()))
        columns = sorted(set(sensitivity.layers.values()))
        return {
            "names": self.names,
            "rows": rows,
            "columns": columns,
            "row": [rows.index(p) for p in sensitivity.projections.values()],
            "column": [columns.index(layer) for layer in sensitivity.layers.values()],
            "tabs": tabs(self),
            "presets": {name: PRESETS[name] for name in presets_of(sensitivity)},
            "most": self.most,
            "steps": STEPS,
            "source": style.source(sensitivity.meta),
            "pictured": bool(self._curves) or len(sensitivity.per_sample) > 1,
        }

    def _shown(self, state: AllocationState | None = None) -> dict[str, Any]:
        """What the browser shows of a state: ranks, their reasons, costs, the line of Python."""
        state = state or self.state
        allocation = self._result if state is self.state else self.result(state)
        kept = state.kept or allocation
        reasons = {n: "by hand" if why in ("pinned", "edited") else why for n, why in allocation.decided_by.items()}
        unit = "ranks" if allocation.budget == "ranks" else "trainable parameters"
        return {
            "ranks": [allocation.ranks.get(name, 0) for name in self.names],
            "kept": [kept.ranks.get(name, 0) for name in self.names],
            "scalings": [_short(allocation.scalings.get(name)) for name in self.names],
            "reasons": [reasons.get(name, "left out") for name in self.names],
            "rank": allocation.rank,
            "middles": {"rank": allocation.rank, "scaling": _short(allocation.alpha / allocation.rank)},
            "controls": controls_of(state, self.most),
            "budget": f"{allocation.budget_used:,} of {allocation.budget_total:,} {unit}",
            "costs": costs_beside(kept, allocation, self.estimate),
            "moved": changes_in_words(allocation, kept),
            "code": code(self.sensitivity, state, SOURCE),
            "finding": finding(allocation),
            "undo": len(self._past),
            "redo": len(self._future),
            "message": saturated(allocation),
        }


def explore(
    model: Any, task: Any, *, samples: int = 32, max_rank: int = 64, rank: int = 8, **options: Any
) -> Workbench:
    """Calibrate, compute subspaces, measure the captured gradient, and show the workbench.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : Task
        From `tlora.load_task`.
    samples : int
        Training samples to calibrate on.
    max_rank : int
        Directions computed for each module.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with.

    Returns
    -------
    Workbench
        Shown already.

    Raises
    ------
    TypeError, KeyError, ValueError
        If `tlora.calibrate` or `tlora.allocate` refuses something.
    """
    calibration = calibrate(model, task.calibration(samples))
    subspaces = task_subspaces(model, calibration, max_rank=max_rank)
    capture = measured_capture(model, task, subspaces)
    workbench = Workbench(calibration, subspaces, model=model, task=task, capture=capture, rank=rank, **options)
    workbench.display()
    return workbench


def measured_capture(model: Any, task: Any, subspaces: Subspaces) -> GradientCapture | None:
    """The captured gradient of validation samples at every rank; None where the task has no such samples."""
    rows = [task.validation[i] for i in range(min(HELD_OUT, len(task.validation)))]
    if not rows:
        return None
    batches = [task.collate(rows[i : i + 8]) for i in range(0, len(rows), 8)]
    most = min(len(basis) for basis in subspaces.bases.values())
    return gradient_capture(model, batches, {subspaces.kind: subspaces}, range(1, most + 1), task=task.name)


def presets_of(sensitivity: Sensitivity) -> list[str]:
    """The presets that make sense for these modules."""
    named = {"q and v": modules_of("q and v", sensitivity), "attention": modules_of("attention", sensitivity)}
    return [name for name in PRESETS if name not in named or 0 < len(named[name]) < len(sensitivity.names)]


def modules_of(name: str, sensitivity: Sensitivity) -> list[str]:
    """The modules that a preset adapts."""
    if name == "q and v":
        return [n for n, projection in sensitivity.projections.items() if QUERY_OR_VALUE.search(projection)]
    return [n for n in sensitivity.names if name != "attention" or ATTENTION.search(n)]


def preset(name: str, state: AllocationState, sensitivity: Sensitivity, bound: int | None) -> AllocationState:
    """The state of a preset: what is by hand goes, the rank and the kept allocation stay.

    Raises
    ------
    KeyError
        If there is no such preset for these modules.
    """
    if name not in (known := presets_of(sensitivity)):
        raise KeyError(f"no preset {name!r} for these modules: choose from {', '.join(known)}")
    if name == "default":
        return replace(starting_state(sensitivity, bound, state.rank), kept=state.kept)
    kept = set(modules_of(name, sensitivity))
    return replace(
        state,
        adapt_ranks=True,
        temperature=0.0 if name in ("uniform", "q and v") else 1.0,
        exclude_modules=tuple(n for n in sensitivity.names if n not in kept),
        pinned={},
        edits={},
        projection_shares={},
    )


def controls_of(state: AllocationState, most: int) -> dict[str, Any]:
    """Values of the controls; None where a limit is not one number for all modules."""

    def number(limit: Limit, default: int) -> int | None:
        return None if isinstance(limit, Mapping) else default if limit is None else limit

    return {
        "budget": state.budget,
        "scaling": state.scaling,
        "rank": state.rank,
        "temperature": state.temperature,
        "min_rank": number(state.min_rank, 1),
        "max_rank": number(state.max_rank, most),
    }


def saturated(allocation: Allocation) -> str:
    """A warning where most ranks are the highest allowed, whatever the scores are; nothing elsewhere."""
    most = dict(zip(allocation.scores, allocation.limits().high, strict=True))
    full = sum(rank == most[name] for name, rank in allocation.ranks.items())
    if 2 * full < len(allocation.ranks):
        return ""
    return (
        f"{full} of {len(allocation.ranks)} modules have the most rank they may, so the scores decide little: lower "
        "the rank, or raise max_rank, and with it that of tlora.task_subspaces."
    )


def costs_beside(a: Allocation, b: Allocation, estimate: ResourceEstimate | None = None) -> list[list[str]]:
    """Rows of a table: the costs of the kept allocation, of the new one, in percent too, and of plain LoRA."""

    def row(what: str, mine: int, theirs: int, lora: int | None, write: Callable[[int], str]) -> list[str]:
        ratio = style.percent(theirs / mine)
        return [what, write(mine), write(theirs), ratio, "" if lora is None else write(lora)]

    rows = [
        row(what, getattr(a, key), getattr(b, key), getattr(b.lora, key), write)
        for what, key, write in (
            ("trainable parameters", "trainable_parameters", "{:,}".format),
            ("adapter, float32", "adapter_bytes", size_text),
            ("AdamW states, float32", "optimizer_bytes", size_text),
        )
    ]
    if estimate is not None:
        mine, theirs = (training_bytes(estimate, one) for one in (a, b))
        rows.append(row("peak memory of training", mine, theirs, None, size_text))
    return rows


def training_bytes(estimate: ResourceEstimate, allocation: Allocation) -> int:
    """Peak memory of training ``B``, at most: that of the uniform adapter and what this one adds to it."""
    uniform = footprint(estimate.shapes, dict.fromkeys(estimate.shapes, estimate.meta.recipe["rank"]), freeze_a=True)
    ours = allocation.footprint()
    gradients = BYTES * (ours.trainable_parameters - uniform.trainable_parameters)
    more = ours.adapter_bytes - uniform.adapter_bytes + ours.optimizer_bytes - uniform.optimizer_bytes
    return estimate.bytes["training B"] + more + gradients


def captured_curves(capture: GradientCapture, kind: str, most: int) -> dict[str, np.ndarray]:
    """Share of the gradient by rank from 1 on; between measured ranks on straight lines, none beyond the last."""
    frame = capture.to_frame()
    frame = frame[frame["kind"] == (kind if kind in capture.kinds else capture.kinds[0])]
    ranks = np.arange(1, min(most, capture.ranks[-1]) + 1)
    return {
        str(name): np.interp(ranks, [0, *of["rank"]], [0.0, *of["captured"]])
        for name, of in frame.groupby("module", sort=False)
    }


def sentence(refusal: str) -> str:
    """A refusal of `tlora.allocate` as a sentence of its own; an argument keeps its name."""
    return refusal if "_" in refusal.split(" ")[0] else refusal[:1].upper() + refusal[1:]


def tabs(workbench: Workbench) -> list[dict[str, Any]]:
    """What the map can show: a value of each module, by its rank or not, how it is coloured and what it is called."""
    sensitivity = workbench.sensitivity.rescale(workbench.state.score)
    scores = sensitivity.to_frame()
    shown: list[dict[str, Any]] = []
    told = {} if len(sensitivity.per_sample) < 2 else _interval(sensitivity)
    shown.append(_tab("sensitivity", "Sensitivity", "share of all scores", "percent", values=scores["share"]) | told)
    shown.append(_tab("rank", "Rank", "rank; middle: uniform", "ratio", of="ranks"))
    shown.append(_tab("change", "Change", "ranks more or fewer than kept", "change", of="change"))
    shown.append(_tab("scaling", "Scaling", "factor of B A; middle: alpha / rank", "ratio", of="scalings"))
    words = {
        ENERGY: ("Energy", "of the energy within the rank"),
        VARIANCE: ("Variance", "of the input variance within the rank"),
        "captured": ("Gradient captured", "of the gradient captured at this rank"),
        "neighbours": ("Neighbours", "overlap with the next layers at this rank"),
        "overlap": ("Overlap", "overlap with the other task at this rank"),
    }
    for what, curves in workbench._curves.items():
        shown.append(_tab(what, *words[what], "percent", curves=curves))
    if workbench.model is not None and workbench.task is not None:
        shown += [
            _tab(f"update {arm}", f"Update, {arm}", f"update of {arm} relative to the weight", "percent", trained=arm)
            for arm in ("kept", "new")
        ]
    if workbench.run is not None:
        used, names = workbench.run.rank_use().set_index("module"), workbench.names
        last = workbench.run.module_history.drop_duplicates("module", keep="last").set_index("module")["update_norm"]
        shown.append(_tab("update", "Update", "update relative to the weight", "percent", values=last.reindex(names)))
        use = used["used_rank"].reindex(names)
        shown.append(_tab("used", "Rank used", "directions for 99 % of the update", "number", values=use))
    if (found := workbench.compression) is not None:
        unit = f"ranks needed, at {style.percent(found.parameters[1] / found.parameters[0])} of the parameters"
        values = [found.ranks.get(name, np.nan) for name in workbench.names]
        shown.append(_tab("needed", "Rank needed", unit, "number", values=values))
    return shown


def _tab(name: str, title: str, unit: str, kind: str, **source: Any) -> dict[str, Any]:
    if "values" in source:
        source["values"] = _rounded(source["values"])
    return {"name": name, "title": title, "unit": unit, "kind": kind, **source}


def _interval(sensitivity: Sensitivity) -> dict[str, Any]:
    """Ends of the 95 % intervals of the shares of the scores."""
    found = sensitivity.intervals()
    total = found["score"].sum()
    return {end: _rounded(found[end] / total) for end in ("low", "high")}


def _rounded(values: Any) -> list[float | None]:
    return [_short(value) for value in np.asarray(values, float)]


def _short(value: float | None) -> float | None:
    """Three digits, which is what is shown; None for what is not known."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.3g}")
