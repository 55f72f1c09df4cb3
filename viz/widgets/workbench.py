"""Workbench: a map of an allocation to inspect and edit, with panels on everything known about it."""

from __future__ import annotations

import functools
import operator
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from peft import PeftModel

from tlora.allocation.allocation import Allocation
from tlora.allocation.options import AllocationOptions, change_options
from tlora.allocation.stability import resample_ranks
from tlora.calibration.calibration import Calibration
from tlora.calibration.expert_use import ExpertUse
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.comparison.race_result import Race
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.models.targets import Model
from tlora.recipes import Plan, Recipe
from tlora.resources.estimate import ResourceEstimate
from tlora.results import Result, count_bytes
from tlora.subspaces.alignment import Alignment, label_subspaces
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.subspaces.subspaces import Subspaces
from tlora.tasks.task import Task
from tlora.training.run import TrainingRun
from tlora.utils.defaults import GRADIENT_KINDS
from tlora.utils.files import replace_file
from tlora.utils.front_end import has_front_end
from tlora.utils.text import size_text
from tlora.utils.validation import check_arguments, with_checked_arguments
from viz.experts import means_by_parameter
from viz.plots.allocation import allocation_headline
from viz.widgets import view
from viz.widgets.base import PicturedWidget, answer_while_busy, as_sentence, refusal_sentence
from viz.widgets.modules import curves_by_rank, is_of_map
from viz.widgets.page import page_html
from viz.widgets.panels.alignment import AlignmentPanel, align_pairs
from viz.widgets.panels.panel import Context, Panel
from viz.widgets.panels.parts import shorten_all
from viz.widgets.panels.registry import make_panels, panel_values
from viz.widgets.picture import draw_workbench
from viz.widgets.race import AllocationRace
from viz.widgets.results import RESULT_CLASSES, Results, scores_to_show
from viz.widgets.session import SESSION, Session, load_session, save_session, session_results
from viz.widgets.stages import ALLOCATION
from viz.widgets.state import (
    EDIT,
    EXCLUDE,
    SCORE,
    SOURCE,
    AllocationState,
    allocate_arguments,
    allocate_state,
    allocation_code,
    apply_preset,
    browser_rule,
    decide_ranks,
    edit_state,
    limit_ranks,
    nearest_rank,
    normalize_options,
    state_from_allocation,
)

STORED = "As the cell ran. To see later edits, trust the notebook or run workbench.display()."
"""Below the picture that a notebook stores: what is seen if the widget does not come back when the page is loaded."""
CHUNKS, CHUNK = 8, 25
"""Chunks of bootstrap resamples behind the distribution of a rank, so that the kernel can answer other requests in
between, and the resamples in each."""
UNBOUND = 256
"""Largest rank on a control if no bases limit it."""


class Workbench(PicturedWidget):
    """The ranks of all modules as a map: point at a module to read about it, drag it to change its rank.

    Whatever is changed, the other modules share the rest of the same budget. ``workbench.plan`` is what is shown: what
    the next cell attaches and trains. Six stages, from the data to the answers, each have a number and a view; one
    that was not run says which line of Python runs it.

    Parameters
    ----------
    calibration : Calibration or Sensitivity
        Where the scores come from. PEFT holds one rank for all experts of a parameter, so that parameter is one cell:
        its score, spectrum and curves are means over them, and one more rank costs one for each of them.
    subspaces : Subspaces, optional
        The bases that will be attached: no rank exceeds theirs, and their spectra are shown.
    model, task : optional
        With both, **Train both** races the kept and the new allocation; before anything is changed, the uniform and
        the kept one. An adapter on the model stays as it is.
    run : TrainingRun, optional
        A training of this model: its curves, how far each module moved, and how much of its rank it used. The map shows
        the last two while its ranks are those of the run.
    capture : GradientCapture, optional
        Of held-out samples. The map shows the kind of the subspaces, or the first kind.
    expert_use : ExpertUse, optional
        From `tlora.expert_use`, of the experts of this calibration: which of them the samples use, and how much.
    activations : DirectionActivations, optional
        From `tlora.direction_activations`: the tokens that the directions of the selected module read.
    answers : AnswerTable, optional
        From `tlora.compare_answers`: what base and trained adapter answer, request by request. If it has an
        ``attribution``, its rows are in the panel Attribution too.
    attribution : Attribution, optional
        From `tlora.attribute`: which modules of a trained adapter made its answers more likely.
    adapted : peft.PeftModel, optional
        The model of the ``answers`` or the ``attribution``, with ``task``: rows of the answers and requests of one's
        own are then taken apart, and any part of its adapter can be switched off or cut to a lower rank.
    effects : SideEffects, optional
        From `tlora.side_effects`: what a trained adapter changed on other text, token by token.
    rescaling : Rescaling, optional
        From `tlora.measure_scales`: a slider for how much of the adapter is kept, and the line that writes it.
    other : Subspaces or mapping of Subspaces, optional
        Other kinds, tasks or seeds, by label: their spectra, and the overlap of every pair.
    spectrum : Spectrum, optional
        From ``calibration.spectrum()``: the variance of the inputs along all directions.
    estimate : ResourceEstimate, optional
        Of this model, from `tlora.estimate`: adds the peak memory of training to the costs.
    training : mapping, optional
        Arguments of `tlora.race` for **Train both**, but ``callbacks``, ``watch`` and ``progress``, in place of
        ``{"seconds": 120, "seeds": [0], "learning_rate": 2e-3, "batch_size": 4, "evaluation_limit": 32}``.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with.

    Attributes
    ----------
    state : AllocationState
        Frozen. It decides the allocation, and holds the kept one.
    results : Results
        What the panels show.
    alignments : list of Alignment
        Every pair of the subspaces, compared at the largest rank that all of them have.
    race : Race or None
        The last race of the kept and the new allocation, when it has ended: ``workbench.race.winner.save(folder)``.
    races : list of Race
        All races that have ended, which a session keeps; their losses, not their adapters.
    widget : WorkbenchView
        The part in the browser.

    Raises
    ------
    TypeError, KeyError, ValueError
        If `tlora.allocate` refuses the options, or the results are of different modules.

    Examples
    --------
    >>> workbench = viz.Workbench(calibration, subspaces, rank=4)
    >>> workbench.set_rank("model.layers.0.mlp.down_proj", 6)
    >>> workbench.allocation.ranks["model.layers.0.mlp.down_proj"]
    6
    >>> workbench.undo()
    >>> workbench.code()
    'tlora.allocate(calibration.sensitivity, rank=4, max_rank=...)'
    """

    def __init__(
        self,
        calibration: Calibration | Sensitivity,
        subspaces: Subspaces | None = None,
        *,
        model: Model | None = None,
        task: Task | None = None,
        run: TrainingRun | None = None,
        capture: GradientCapture | None = None,
        expert_use: ExpertUse | None = None,
        activations: DirectionActivations | None = None,
        answers: AnswerTable | None = None,
        attribution: Attribution | None = None,
        adapted: PeftModel | None = None,
        effects: SideEffects | None = None,
        rescaling: Rescaling | None = None,
        other: Subspaces | Mapping[str, Subspaces] | None = None,
        spectrum: Spectrum | None = None,
        estimate: ResourceEstimate | None = None,
        training: Mapping[str, Any] | None = None,
        rank: SupportsIndex = 8,
        **options: Any,
    ) -> None:
        arguments = locals()
        check_arguments(Workbench.__init__, arguments)
        self.calibration, self.subspaces = calibration, subspaces
        sensitivity = calibration.sensitivity if isinstance(calibration, Calibration) else calibration
        self.sensitivity = sensitivity.by_parameter()  # experts of a parameter have one rank, and one cell
        self.names = self.sensitivity.names
        self.model: Any = model
        self.task: Any = task
        self.adapted = adapted
        self._recipe = Recipe("workbench")
        given = {name: arguments[name] for name in RESULT_CLASSES if name in arguments}
        self.results = Results(**given, sensitivity=self.sensitivity, others=label_others(subspaces, other))
        self.results.check_modules()
        self.alignments = align_pairs(own_and_others(self.results))
        check_equal_lengths(self.names, subspaces)
        self._bound = None if subspaces is None else subspaces.max_rank
        directions = subspaces if subspaces is not None and subspaces.kind in GRADIENT_KINDS else None
        initial = normalize_options(change_options(AllocationOptions(operator.index(rank)), options), self.sensitivity)
        state = AllocationState(limit_ranks(initial, self._bound, self.names), directions=directions)
        self._allocation = allocate_state(self.sensitivity, state, self._bound)
        self.state = replace(state, kept=self._allocation)
        self._race = AllocationRace(self.sensitivity, subspaces, model, task, training or {}, self._follow)
        self._past: list[AllocationState] = []
        self._future: list[AllocationState] = []
        self._gesture: str | None = None  # of the last step
        self._gesture_now: str | None = None  # of the request that is being answered
        self._resamples: list[np.ndarray] = []  # ranks of the allocation that is shown, by chunk
        self._lock = threading.RLock()  # requests come in a thread of their own while a cell runs
        self._panels = self._make_panels()
        self.widget = view.WorkbenchView(about=self._about())
        self._select_first()
        self.widget.current = self._current()
        self.widget.on_msg(self._answer)
        self.widget.observe(self._open_panel, "panel")
        answer_while_busy(self.widget)

    @classmethod
    def from_plan(cls, plan: Plan, **parts: Any) -> Workbench:
        """The workbench of a plan: it begins with its allocation, and changes it.

        Parameters
        ----------
        plan : Plan
            From `tlora.prepare`, with its calibration.
        **parts
            Other arguments of `Workbench`.

        Returns
        -------
        Workbench

        Raises
        ------
        ValueError
            If the plan has no calibration, or its directions are just those that its ranks need, as those of
            ``"tlora-paper"`` are: no rank could grow. `explore` computes more.

        Examples
        --------
        >>> workbench = viz.Workbench.from_plan(tlora.prepare(model, task, rank=2, samples=4, progress=False))
        >>> workbench.plan.allocation is workbench.allocation
        True
        """
        if plan.calibration is None:
            raise ValueError("the plan has no calibration, whose scores the map shows: prepare it again, or with one")
        options = plan.allocation.options.arguments
        workbench = cls(plan.calibration, plan.subspaces, **parts, **options)
        workbench._recipe = plan.recipe
        return workbench

    @classmethod
    def from_results(cls, results: Results, rank: int = 8) -> Workbench:
        """The workbench of the results of one run: it begins with their allocation.

        Parameters
        ----------
        results : Results
            Such as a folder holds.
        rank : int
            Nominal rank if there is no allocation among them.

        Returns
        -------
        Workbench
        """
        allocation = results.allocation
        taken = signature(cls).parameters
        parts = {name: getattr(results, name) for name in RESULT_CLASSES if name in taken}
        rank = rank if allocation is None else allocation.rank
        workbench = cls(scores_to_show(results), **parts, other=results.others, rank=rank)
        workbench.results = replace(results, sensitivity=results.sensitivity and workbench.sensitivity)
        workbench._panels = workbench._make_panels()
        if allocation is not None:
            known = workbench.state.directions
            state = state_from_allocation(allocation)
            workbench._restore(replace(state, kept=allocation, directions=state.directions or known))
            workbench._select_first()
        workbench.widget.about = workbench._about()
        return workbench

    @property
    def allocation(self) -> Allocation:
        """The allocation that is shown."""
        return self._allocation

    @property
    def plan(self) -> Plan:
        """The plan that is shown: ``tlora.attach(model, workbench.plan)``."""
        calibration = self.calibration if isinstance(self.calibration, Calibration) else None
        meta = self.allocation.meta
        return Plan(self._recipe, self.allocation, self.subspaces, calibration, meta)

    @property
    def kept(self) -> Allocation:
        """The allocation from which changes are counted."""
        assert self.state.kept is not None
        return self.state.kept

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `tlora.allocate` for this allocation, those that are not the default; edits come on top."""
        return allocate_arguments(self.sensitivity, self.state)

    @property
    def selected(self) -> list[str]:
        """Full names of the selected modules."""
        return [self.names[i] for i in self.widget.selected]

    @property
    def most(self) -> int:
        """Largest rank that a control offers."""
        return self._bound or min(UNBOUND, max(min(shape) for shape in self.sensitivity.shapes.values()))

    @property
    def line(self) -> str:
        """The allocation in one line of text."""
        return f"{allocation_headline(self._allocation)}: {self.code()}"

    def allocate(self, state: AllocationState) -> Allocation:
        """The allocation of ``state``: `tlora.allocate`, then its edits."""
        if state.options == self.state.options and state.directions is self.state.directions:
            return edit_state(self._allocation, state, self._bound)
        return allocate_state(self.sensitivity, state, self._bound)

    @with_checked_arguments
    def code(self, source: str = SOURCE) -> str:
        """The allocation as one line of Python; ``source`` is the expression for the sensitivity."""
        return allocation_code(self.sensitivity, self.state, source)

    @with_checked_arguments
    def select(self, *names: str) -> None:
        """Select modules by their full ``names``; KeyError if there is no such module."""
        self.widget.selected = [self.names.index(name) for name in self._module_names(names)]

    def _select_first(self) -> None:
        """Select the module with the most rank, which the headline names."""
        ranks = self._allocation.ranks
        self.select(max(ranks, key=lambda name: (ranks[name], self.sensitivity.scores[name])))

    @with_checked_arguments
    def compare(self, left: str, right: str, rank: SupportsIndex = 8) -> Alignment:
        """Show two subspaces in the panel of alignments.

        Parameters
        ----------
        left, right : str
            Their labels: the kind of ``subspaces``, and the keys of ``other``.
        rank : int
            First directions of both to compare, at most as many as all subspaces have.

        Returns
        -------
        Alignment
            The pair at the largest rank; ``.at(rank)`` has the overlaps of the modules at any rank.

        Raises
        ------
        KeyError
            If there is no such pair.
        """
        pairs = {frozenset(alignment.sides): alignment for alignment in self.alignments}
        alignment = pairs.get(frozenset((left, right)))
        if alignment is None:
            labels = ", ".join(map(repr, own_and_others(self.results))) or "none: pass other="
            raise KeyError(f"no pair {left!r} and {right!r} to compare: choose two of {labels}")
        one, other = alignment.sides
        self.widget.compared = {"left": one, "right": other, "rank": min(int(rank), alignment.rank)}
        self.widget.stage, self.widget.panel = AlignmentPanel.stage, AlignmentPanel.name
        return alignment

    def set(self, **options: Any) -> None:
        """Change arguments (``options``) of `tlora.allocate`, e.g. ``set(temperature=0.5)``; ranks by hand stay.

        Raises
        ------
        TypeError, KeyError, ValueError
            If `tlora.allocate` refuses them. Nothing changes then.
        """
        changed = normalize_options(change_options(self.state.options, options), self.sensitivity)
        if "max_rank" in options:
            changed = limit_ranks(changed, self._bound, self.names)
        self._move(replace(self.state, options=changed))
        if "score" in options:  # its tab shows them
            self.widget.about = self._about()

    @with_checked_arguments
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

    @with_checked_arguments
    def release(self, names: str | Collection[str]) -> None:
        """Give the modules ``names`` back to their scores: no rank by hand, not left out; raises as `set_rank`."""
        self._decide(names, SCORE)

    @with_checked_arguments
    def leave_out(self, names: str | Collection[str]) -> None:
        """Give the modules ``names`` no adapter, and their part of the budget to the others; raises as `set_rank`."""
        self._decide(names, EXCLUDE)

    @with_checked_arguments
    def preset(self, name: str) -> None:
        """Go to the preset ``name``, e.g. ``"uniform"``; rank and what was kept stay. ValueError if it does not fit."""
        self._move(apply_preset(name, self.state, self.sensitivity, self._bound))

    def keep(self) -> None:
        """Keep what is shown: changes are counted from it."""
        self._move(replace(self.state, kept=self._allocation))

    def undo(self) -> None:
        """Take the last change back, if there is one."""
        self._step(self._past, self._future)

    def redo(self) -> None:
        """Repeat the change that was taken back last, if there is one."""
        self._step(self._future, self._past)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the session to a folder: the results, the allocation, the kept one, the races, and what is selected.

        Activations, answers, attribution and side effects hold the text of their samples. Of a calibration the session
        keeps the sensitivity, not the covariances, which are larger than all else together.

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
        """
        check_arguments(Workbench.save, locals())
        with self._lock:
            parts = self._session_results()
            session = Session(
                self.state.options,
                dict(self.state.edits),
                list(self.selected),
                self.widget.tab,
                list(self.results.others),
                [race.arms for race in self._race.past],
            )
        return save_session(path, session, parts)

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
        ValueError
            If it is damaged, or names a module that its calibration does not have.
        """
        check_arguments(Workbench.load, locals())
        session, results, kept, races = load_session(path)
        options, edits = session.options, session.edits
        workbench = cls.from_results(results, options.rank)
        named = {*edits, *options.pinned, *options.exclude_modules, *session.selected}
        if unknown := sorted(named.difference(workbench.names)):
            raise ValueError(
                f"{Path(path, SESSION)} names {unknown[0]}, which the calibration does not have: save it again"
            )
        workbench._race.past = races
        workbench.widget.races = workbench._race.listed
        workbench._restore(AllocationState(options, edits, workbench.state.directions, kept))
        workbench.select(*session.selected)
        workbench._show_tab(session.tab)
        return workbench

    @with_checked_arguments
    def page(self, path: str | os.PathLike[str], *, texts: bool = False) -> Path:
        """Write one HTML file that shows the map and all panels without a kernel and without a network.

        Everything works but what takes the model or the results: ranks follow the rule of `tlora.allocate` there, too.

        Parameters
        ----------
        path : path-like
            The file.
        texts : bool
            Include the panels Reads, Answers, Attribution and Side effects, which hold the text of samples.

        Returns
        -------
        pathlib.Path
            The file.
        """
        with replace_file(path) as file:
            file.write_text(self._page(texts), encoding="utf-8")
        return Path(path)

    # Training of the kept and the new allocation.

    @property
    def race(self) -> Race | None:
        """The last race of two allocations, when it has ended."""
        return self._race.result

    @property
    def arms(self) -> dict[str, Allocation]:
        """What **Train both** trains: the kept and the new allocation, or the uniform and the kept one if they agree.

        Empty if these agree too.
        """
        return self._race.arms(self.kept, self._allocation)

    def train(self, **options: Any) -> None:
        """Train both `arms` in a thread: see `tlora.race`. The map may change meanwhile.

        Parameters
        ----------
        **options
            Arguments of `tlora.race`, in addition to those that the workbench was made with.

        Raises
        ------
        ValueError
            If model or task are missing, all modules have the same rank as was kept, or both are being trained already.
        """
        self._race.train(self.kept, self._allocation, options)
        self._tell()  # what is raced is now what the map shows

    @property
    def races(self) -> list[Race]:
        """The races that have ended, the last one last; they hold losses and no adapters."""
        return [race.result for race in self._race.past]

    def stop(self, name: str) -> None:
        """End the training of ``name``, one of `arms`, after the step that runs; the race goes on."""
        self._race.stop(name)

    def _follow(self, **traits: Any) -> None:
        self._set_traits(**traits)
        if "races" in traits:
            with self._lock:
                self._tell()  # the map may show the allocations of a race that has ended

    def _save_winner(self, path: str = "workbench-winner") -> None:
        assert self.race is not None  # there is no button before
        folder = str(self.race.winner.save(path))
        self._tell(f"Saved: tlora.load_adapter({folder!r}, model) puts {self.race.leader} on the model.", note=True)

    # States and requests.

    def _module_names(self, names: str | Collection[str]) -> list[str]:
        """One or several names as a list; KeyError if there is no such module."""
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self.sensitivity.shapes:
                raise KeyError(f"{name!r} is not a module here: there are {len(self.names)}, e.g. {self.names[0]!r}")
        return names

    def _decide(self, names: str | Collection[str], way: str, rank: int = 0) -> None:
        self._move(decide_ranks(self.state, self._module_names(names), way, rank))

    def _move(self, state: AllocationState, message: str = "") -> None:
        """Go to a state as one step to undo; within one gesture of the user, the step before grows."""
        with self._lock:
            before, gesture = self.state, self._gesture_now
            allocation = self.allocate(state)
            if gesture is None or gesture != self._gesture:
                self._past.append(before)
            self._gesture = gesture
            self._future.clear()
            self._show(state, allocation, message)

    def _step(self, source: list[AllocationState], target: list[AllocationState]) -> None:
        with self._lock:
            if source:
                target.append(self.state)
                self._gesture = None
                self._restore(source.pop())

    def _restore(self, state: AllocationState) -> None:
        self._show(state, self.allocate(state))

    def _show(self, state: AllocationState, allocation: Allocation, message: str = "") -> None:
        self.state, self._allocation = state, allocation
        self._resamples, self.widget.resampled = [], []
        self._tell(message)

    def _tell(self, message: str = "", *, note: bool = False) -> None:
        """Show the state; with a message always again, so that a control whose value was refused shows the old one.

        A ``note`` says what was done, other messages what was refused.
        """
        current, messages = self._current(), self.widget.current.get("messages", 0)
        more = {"message": message, "messages": messages + bool(message), "note": note}
        self.widget.current = current | more

    def _answer(self, widget: Any, content: Mapping[str, Any], buffers: Any) -> None:
        """Do what the browser asks for, and say that it is done: the browser sends one request at a time."""
        with self._lock:
            self._gesture_now = content.get("gesture")
            try:
                self._requests[content["call"]](**content.get("args", {}))
            except (KeyError, ValueError, OSError) as refusal:
                self._tell(refusal_sentence(refusal))
            finally:
                self._gesture_now = None
                more = content["call"] == "resample" and 0 < len(self._resamples) < CHUNKS
                self.widget.send({"answer": content.get("id"), "more": more})

    @functools.cached_property
    def _requests(self) -> dict[str, Callable[..., None]]:
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
            "resample": self._resample,
            "save": self._save,
            "train": self.train,
            "stop": self.stop,
            "save_winner": self._save_winner,
            "page": lambda texts=False: self.widget.send({"file": "allocation.html", "text": self._page(texts)}),
            **{call: answer for panel in self._panels for call, answer in panel.requests().items()},
        }

    def _show_tab(self, name: str) -> None:
        """Show a tab of the map, in its stage."""
        stages = {tab["name"]: tab["stage"] for tab in self.widget.about["tabs"]}
        self.widget.stage, self.widget.tab = stages.get(name, ALLOCATION), name

    def _open_panel(self, change: Any) -> None:
        if any(panel.name == change["new"] for panel in self._panels if panel.follows_allocation):
            with self._lock:
                self._tell()

    def _session_results(self) -> dict[str, Result]:
        return session_results(self.results, self.kept, self._race.past)

    def _save(self, path: str = "workbench-session") -> None:
        folder = self.save(path)
        size = size_text(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
        self._tell(f"Saved {size}: viz.Workbench.load({str(folder)!r}) opens it again.", note=True)

    def _drag(self, names: list[str], rank: int) -> None:
        """Set ranks, or the nearest that are possible, and say so."""
        try:
            self._decide(names, EDIT, rank)
        except ValueError as refusal:
            present = self._allocation.ranks.get(names[0], 1)
            nearest = nearest_rank(self.sensitivity, self.state, names, present, rank)
            if nearest is None:
                raise
            self._move(decide_ranks(self.state, names, EDIT, nearest), as_sentence(str(refusal)))

    def _resample(self) -> None:
        """Make one more chunk of the resamples; after the last, show how often each module got which rank."""
        if (
            len(self.sensitivity.per_sample) < 2
            or len(self._resamples) == CHUNKS
            or self._allocation.options.is_captured
        ):
            return
        seed = len(self._resamples)
        ranks = resample_ranks(self.sensitivity, self._allocation, samples=None, resamples=CHUNK, seed=seed)
        self._resamples.append(ranks)
        if len(self._resamples) == CHUNKS:
            columns = dict(zip(self._allocation.scores, np.concatenate(self._resamples).T, strict=True))
            counts = {name: np.unique(ranks, return_counts=True) for name, ranks in columns.items()}
            self.widget.resampled = [np.stack(counts[n], 1).tolist() if n in counts else [] for n in self.names]

    # What is shown.

    def _repr_png_(self) -> bytes:
        note = STORED if has_front_end() else ""
        return draw_workbench(self._allocation, self.widget.about, self.selected, self._compared(), note)

    def _compared(self) -> tuple[Alignment, int] | None:
        """The pair in the open panel of alignments and its rank."""
        if self.widget.panel != AlignmentPanel.name or not self.widget.compared:
            return None
        sides = self.widget.compared["left"], self.widget.compared["right"]
        pair = next(alignment for alignment in self.alignments if alignment.sides == sides)
        return pair, self.widget.compared["rank"]

    def _page(self, texts: bool = False) -> str:
        state: dict[str, Any] = {
            name: getattr(self.widget, name)
            for name in ("about", "stage", "tab", "panel", "selected", "compared", "resampled")
        }
        panels = make_panels(Context(self.results, self.names, self.alignments, texts), self._panels)
        for panel in panels:
            state |= panel.page_state({name: getattr(self.widget, name) for name in panel.answers})
        state["about"] = state["about"] | {"panels": panel_values(panels)}
        current = self._current(page=True)
        rule = browser_rule(self.sensitivity, self.state, self._allocation)
        return page_html(self.results, **state, current=current, rule=rule)

    def _make_panels(self) -> list[Panel]:
        calibration = self.calibration if isinstance(self.calibration, Calibration) else None
        parts = self.results, self.names, self.alignments
        live = {"adapted": self.adapted, "task": self.task, "calibration": calibration}
        return make_panels(Context(*parts, show=self._set_traits, **live))

    def _set_traits(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self.widget, name, value)

    @functools.cached_property
    def _curves(self) -> dict[str, list[list[float | None]]]:
        """Shares by rank from 1 on of every module, by the name of the tab."""
        curves = curves_by_rank(self.names, self.subspaces, self.results.capture, self.most)
        if self.subspaces is not None and self.alignments:
            overlaps = means_by_parameter(self.alignments[0].overlaps)
            curves["overlap"] = [shorten_all(overlaps.get(name, ())) for name in self.names]
        return curves

    def _about(self) -> dict[str, Any]:
        """What stays as it is: the modules, what is known of them, tabs and panels."""
        return view.about(
            self.sensitivity.rescale(self.state.options.score),
            self.results,
            self._panels,
            curves=self._curves,
            most=self.most,
            training=self._race.training if self._race.can_train else None,
            knows_directions=self.state.directions is not None,
            rank=self.state.options.rank,
        ) | {"session": size_text(sum(map(count_bytes, self._session_results().values())))}

    def _current(self, page: bool = False) -> dict[str, Any]:
        """What the browser shows of the state: ranks, their reasons, the line of Python."""
        values = view.current(self.names, self._allocation, self.state, self.most) | {"code": self.code()}
        values["parts"] = {  # their tables are not made for every step of a drag
            panel.name: panel.parts_of(self._allocation)
            for panel in self._panels
            if panel.follows_allocation and (page or self.widget.panel == panel.name)
        }
        if page:
            return values
        race = self._race.values(self.kept, self._allocation)
        return values | {"race": race, "undo": len(self._past), "redo": len(self._future)}


def own_and_others(results: Results) -> dict[str, Subspaces]:
    """The subspaces to compare, by label, the own ones first."""
    if results.subspaces is None:
        return dict(results.others)
    kind = results.subspaces.kind
    return {kind if kind not in results.others else f"{kind} (own)": results.subspaces, **results.others}


def label_others(
    subspaces: Subspaces | None, other: Subspaces | Mapping[str, Subspaces] | None
) -> dict[str, Subspaces]:
    """The other subspaces by label, without the own ones."""
    if isinstance(other, Subspaces):
        return {label_subspaces([other] if subspaces is None else [subspaces, other])[-1]: other}
    return {label: one for label, one in (other or {}).items() if one is not subspaces}


def check_equal_lengths(names: list[str], subspaces: Subspaces | None) -> None:
    """Refuse bases of other modules, or made for an allocation: they leave no rank room to grow."""
    if subspaces is None:
        return
    if not is_of_map(subspaces.shapes, names):
        raise ValueError(
            f"the subspaces are of {len(subspaces.shapes)} modules and the sensitivity of {len(names)} others: pass "
            "two results of one calibration"
        )
    most = subspaces.max_rank
    short = [n for n, basis in subspaces.bases.items() if len(basis) < min(most, *subspaces.shapes[n])]
    if short:
        raise ValueError(
            f"the subspaces have {most} directions in some modules and {len(subspaces.bases[short[0]])} in {short[0]}, "
            f"which leaves its rank no room: make them with one number, tlora.task_subspaces(..., max_rank={most}), or "
            "open viz.explore(model, task, recipe)"
        )
