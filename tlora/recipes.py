"""One run: a recipe names the arguments of each step, `prepare` takes the steps that come before training."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pandas as pd

from tlora.adapters.attach import attach
from tlora.allocation.allocate import allocate, check_limits
from tlora.allocation.allocation import Allocation
from tlora.allocation.options import AllocationOptions
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.models.record import fixed_weights
from tlora.models.targets import Model, target_modules
from tlora.models.weights import check_same_model
from tlora.results import Meta, Result
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.task import Task
from tlora.training.arguments import check_names
from tlora.training.phases import OF_A, TrainingPhases
from tlora.training.train import train
from tlora.utils.defaults import (
    BATCH_SIZE,
    COVARIANCE,
    DEFAULT_RECIPE,
    DIRECTIONS,
    GRADIENT_KINDS,
    KIND,
    KINDS,
    RANK,
    SAMPLES,
    SKETCH_SIZE,
    Kind,
    StatisticsPlacement,
)
from tlora.utils.distributed import Processes
from tlora.utils.text import count_text
from tlora.utils.validation import check_arguments, choices_of, require_choice, require_positive_int

logger = logging.getLogger(__name__)

Arguments = Mapping[str, Any]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "calibrate": calibrate,
    "task_subspaces": task_subspaces,
    "allocate": allocate,
    "attach": attach,
    "train": train,
}
# Arguments that the caller gives, not a recipe: data, sizes, seeds and progress.
_CALLERS = {
    "model", "batches", "task", "calibration", "sensitivity", "plan", "subspaces", "allocation",
    "rank", "seed", "output_dir", "resume", "progress", "callbacks", "replace", "checkpoint", "checkpoint_every",
    "config", "samples",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Arguments of the functions of the pipeline, under a name; what is not named is as by default.

    ``tlora.prepare`` and ``tlora.race`` take recipes, so that each choice can be tried against the others.

    Attributes
    ----------
    name : str
        Name of its results.
    calibrate, allocate, attach, train : dict
        Arguments of the function of that name: JSON values.
    task_subspaces : dict or None
        The same; None for no subspaces: ``A`` is then randomly initialized (and usually trained:
        ``attach={"freeze_a": False}``).

    Raises
    ------
    TypeError
        If a function has no such argument, if it is the caller's to give (the rank, the seed, the data), or if a
        value is of another kind than the function takes, or cannot be written as JSON.
    ValueError
        If a value is none of the words that the function takes, or out of the range of `tlora.allocate`.

    Examples
    --------
    >>> tlora.Recipe("wider", attach={"rows": "orthonormal"}, allocate={"temperature": 0.5})
    Recipe(wider: allocate(temperature=0.5), attach(rows='orthonormal'))
    >>> tlora.Recipe.named("captured").override(allocate={"max_rank": 16})
    Recipe(captured: task_subspaces(kind='fisher'), allocate(by='captured', ..., max_rank=16))
    """

    name: str
    calibrate: Arguments = field(default_factory=dict)
    task_subspaces: Arguments | None = field(default_factory=dict)
    allocate: Arguments = field(default_factory=dict)
    attach: Arguments = field(default_factory=dict)
    train: Arguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arguments(Recipe, vars(self))
        for function in _FUNCTIONS:
            arguments = getattr(self, function)
            if arguments is None:
                continue
            _check(function, arguments)
            # A copy, so that changes elsewhere do not reach it.
            object.__setattr__(self, function, Meta(recipe=dict(arguments), versions={}).recipe)
        for name, value in TrainingPhases(**{name: self.train.get(name) for name in OF_A}).options().items():
            if self.attach.get("freeze_a", True):
                raise ValueError(
                    f"{name}={value!r} has no effect, since this recipe freezes A from the start: leave it out, or add "
                    "attach={'freeze_a': False}"
                )

    @staticmethod
    def named(name: str) -> Recipe:
        """Return the recipe of that ``name``, as in ``tlora run --recipe``; a KeyError names all others."""
        check_arguments(Recipe.named, locals())
        if name == "tlora":  # the name that the default had, which is not the published method
            raise KeyError("no recipe 'tlora': choose 'captured', the default here, or 'tlora-paper', as published")
        if name not in RECIPES:
            raise KeyError(f"no recipe {name!r}: choose one of {', '.join(RECIPES)}")
        return RECIPES[name]

    def override(self, **arguments: Arguments | None) -> Recipe:
        """Return the recipe with other ``arguments``, by function; those that are not named stay.

        ``task_subspaces=None`` drops the subspaces.
        """
        for function in arguments.keys() - _FUNCTIONS.keys():
            raise TypeError(f"a recipe has no arguments of {function!r}: it has those of {', '.join(_FUNCTIONS)}")
        check_arguments(Recipe, arguments)
        changed: dict[str, Any] = {
            function: None if values is None else {**(getattr(self, function) or {}), **values}
            for function, values in arguments.items()
        }
        return replace(self, **changed)

    @property
    def kind(self) -> Kind | None:
        """The kind of the directions that ``A`` starts from; None if it is random."""
        return None if self.task_subspaces is None else self.task_subspaces.get("kind", KIND)

    @property
    def needs(self) -> dict[str, bool]:
        """Arguments of `tlora.calibrate` for the statistics that these directions need."""
        needs = KINDS[self.kind].needs if self.kind else ""
        return {needs: True} if needs else {}

    @property
    def follows_directions(self) -> bool:
        """Whether ranks are chosen by what directions capture, so that the directions come first."""
        return self.allocate.get("by") == "captured" and self.allocate.get("adapt_ranks", True)

    def arguments(self) -> dict[str, dict[str, Any] | None]:
        """Return what differs from the defaults, by function; None if there are no subspaces."""
        arguments = {function: getattr(self, function) for function in _FUNCTIONS}
        return {
            function: None if values is None else dict(values) for function, values in arguments.items() if values != {}
        }

    def __repr__(self) -> str:
        calls = [
            f"no {function}" if values is None else f"{function}({', '.join(f'{k}={v!r}' for k, v in values.items())})"
            for function, values in self.arguments().items()
        ]
        return f"Recipe({self.name}: {', '.join(calls) or 'all as by default'})"


def _check(function: str, arguments: Arguments) -> None:
    parameters = inspect.signature(_FUNCTIONS[function]).parameters
    named = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD} - _CALLERS
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name in _CALLERS or (name not in named and not open_ended):
            raise TypeError(f"a recipe cannot set {name!r} of {function}(): it has {', '.join(sorted(named))}")
    if open_ended:  # train, which passes the rest on to the Trainer
        check_names(arguments.keys() - named)
    check_arguments(_FUNCTIONS[function], arguments)
    for name, choices in choices_of(_FUNCTIONS[function]).items():
        if name in arguments:
            require_choice(arguments[name], name, choices)
    if function == "allocate":
        AllocationOptions(RANK, **arguments)  # which refuses what is out of range


_CAPTURED: dict[str, Any] = {
    "task_subspaces": {"kind": "fisher"},
    "allocate": {"by": "captured", "budget": "parameters", "adapt_scales": False},
}
_ALL = [
    Recipe("captured", **_CAPTURED),
    Recipe("captured-trained", **_CAPTURED, attach={"freeze_a": False}),
    # The steps after A is frozen cost what those of `captured` cost.
    Recipe("captured-freeze-late", **_CAPTURED, attach={"freeze_a": False}, train={"freeze_a_after": 0.2}),
    Recipe("tlora-paper", attach={"rows": "orthonormal"}),
    Recipe(
        "lora",
        task_subspaces=None,
        allocate={"adapt_ranks": False, "adapt_scales": False},
        attach={"freeze_a": False},
    ),
]
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""Recipes by name: ``captured``, with ``A`` frozen along the directions of kind ``"fisher"``, ranks by what they
capture of the gradient, and the parameters and scale of uniform ranks; ``captured-trained``, the same start with ``A``
trained as well; ``captured-freeze-late``, with ``A`` trained for the first fifth of the steps; ``tlora-paper``, the
published method: what the functions do by default, with rows of length one; and ``lora``, plain LoRA."""


@dataclass(frozen=True, repr=False, eq=False)
class Plan(Result):
    """The decisions before training, from `tlora.prepare`: ``tlora.attach(model, plan)`` puts it on a model.

    Attributes
    ----------
    recipe : Recipe
        How it was decided, and how to train it: ``plan.recipe.train`` are arguments of `tlora.train`.
    allocation : Allocation
        Rank and scaling of each module.
    subspaces : Subspaces or None
        What ``A`` starts from; None if it is random.
    calibration : Calibration or None
        The statistics behind both; None if an allocation was given and nothing else was needed.
    meta : Meta
        Model, task, seed.

    Notes
    -----
    The file of a plan holds all of it. The calibration is by far the largest part, and `tlora.attach` does not read it:
    ``dataclasses.replace(plan, calibration=None).save(path)`` leaves it out.

    Examples
    --------
    >>> plan = tlora.prepare(model, task, rank=2, samples=4, progress=False)
    >>> plan
    Plan(captured: ...)
    >>> adapted = tlora.attach(model, plan)
    >>> tlora.detach(model)
    """

    recipe: Recipe
    allocation: Allocation
    subspaces: Subspaces | None
    calibration: Calibration | None
    meta: Meta

    columns: ClassVar[dict[str, str]] = Allocation.columns

    def to_frame(self) -> pd.DataFrame:
        """Return the allocation's table: one row per module; see ``columns``."""
        return self.allocation.to_frame()

    def _summary(self) -> str:
        return f"{self.recipe.name}: {self.allocation._summary()}"


def prepare(
    model: Model,
    task: Task | Iterable[Mapping[str, Any]],
    recipe: str | Recipe = DEFAULT_RECIPE,
    rank: int = RANK,
    *,
    calibration: Calibration | None = None,
    allocation: Allocation | None = None,
    samples: int = SAMPLES,
    batch_size: int = BATCH_SIZE,
    gradient_checkpointing: bool | None = None,
    statistics: StatisticsPlacement | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Plan:
    """Decide an adapter before training: calibrate on a few samples, choose directions and ranks.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    task : Task or iterable of dict
        From `tlora.load_task`; or batches, as for `tlora.calibrate`.
    recipe : str or Recipe
        ``"captured"``, ``"captured-trained"``, ``"captured-freeze-late"``, ``"tlora-paper"``, ``"lora"``, or one of
        your own.
    rank : int
        Nominal rank, as in LoRA: the budget is what it costs in every module.
    calibration : Calibration, optional
        Made before, of this model; otherwise `tlora.calibrate` makes one.
    allocation : Allocation, optional
        Made before; its directions are then all that is left to compute.
    samples : int
        Training samples to calibrate on.
    batch_size : int
        Most samples at a time: the memory of a calibration grows with it, its numbers change by rounding.
    gradient_checkpointing : bool, optional
        Calibrate in the memory of a checkpointed training step, as `tlora.calibrate` does; by default if
        ``recipe.train`` has it, or the model is set so.
    statistics : {"device", "host"}, optional
        Where the sums of a calibration are kept; as for `tlora.calibrate`.
    seed : int
        Seed of the directions, and of a random ``A``.
    checkpoint : path-like, optional
        Folder to save an unfinished calibration in, and to resume it from; as for `tlora.calibrate`.
    progress : bool
        Show progress bars.

    Returns
    -------
    Plan
        ``tlora.attach(model, plan)`` puts it on the model, ``tlora.train(adapted, task, **plan.recipe.train)`` trains
        it.

    Raises
    ------
    KeyError
        If there is no recipe of this name.
    ValueError
        If the budget cannot be met within the recipe's limits (before anything is computed), the allocation follows
        other directions than those of the recipe, or a result is of another model.

    Examples
    --------
    >>> plan = tlora.prepare(model, task, rank=2, samples=4, progress=False)
    >>> sum(plan.allocation.ranks.values()) > 0
    True
    >>> published = tlora.prepare(model, task, "tlora-paper", rank=2, calibration=plan.calibration, progress=False)
    >>> published.subspaces.kind
    'wc'
    """
    check_arguments(prepare, locals())
    rank = require_positive_int(rank, "rank")
    recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe
    with fixed_weights(model):
        if allocation is None:
            arguments = allocation_arguments(recipe, rank)
            if calibration is None:  # a calibration's own modules are checked when it is allocated
                check_limits(target_modules(model, recipe.calibrate.get("target_modules")), **arguments)
        else:
            _check_directions(allocation, recipe)
        if calibration is None and (allocation is None or recipe.kind):
            arguments = recipe.needs | dict(recipe.calibrate)
            if gradient_checkpointing is None:
                gradient_checkpointing = recipe.train.get("gradient_checkpointing")
            options: dict[str, Any] = {"checkpoint": checkpoint, "progress": progress}
            options |= {"gradient_checkpointing": gradient_checkpointing, "statistics": statistics}
            calibration = calibrate_on(model, task, arguments, samples, batch_size, **options)
        elif calibration is not None:
            check_same_model(model, calibration.fingerprints, calibration.sensitivity.shapes)
        subspaces = None
        if allocation is None:
            assert calibration is not None
            allocation, subspaces = allocate_and_decompose(model, calibration, recipe, rank, seed, progress)
        if subspaces is None and recipe.kind:
            assert calibration is not None
            # The directions that the ranks were chosen from, so that they are the same ones.
            known = max(map(len, allocation.energies.values()), default=0)
            subspaces = decompose(model, calibration, recipe, known or allocation, seed, progress)
    used = Meta() if calibration is None else calibration.meta
    return Plan(
        recipe=recipe,
        allocation=allocation,
        subspaces=subspaces,
        calibration=calibration,
        meta=Meta(
            allocation.meta.model, used.task, {"recipe": recipe.arguments(), "rank": rank}, int(seed), used.samples
        ),
    )


def _check_directions(allocation: Allocation, recipe: Recipe) -> None:
    """Refuse ranks that follow other directions than those that ``A`` starts from."""
    followed = allocation.meta.recipe.get("kind") if allocation.options.is_captured else None
    if followed and recipe.kind and followed != recipe.kind:
        raise ValueError(
            f"the ranks were chosen along directions of kind {followed}, and A would start from kind {recipe.kind}: "
            f"take kind={followed!r}, or allocate with this recipe"
        )


def allocation_arguments(recipe: Recipe, rank: int) -> dict[str, Any]:
    """Return the arguments of `allocate` for a recipe: ranks by score do not exceed the directions that there will be.

    Ranks by captured gradient are limited by the directions themselves.
    """
    arguments = {"rank": rank, **recipe.allocate}
    if not arguments.get("adapt_ranks", True):
        arguments.pop("by", None)
    if recipe.follows_directions and recipe.kind not in GRADIENT_KINDS:
        raise ValueError(
            f"ranks by captured gradient need directions of a gradient: take kind={' or '.join(GRADIENT_KINDS)}, or "
            "other ranks with by=score or adapt_ranks=False"
        )
    if recipe.kind is None:
        return arguments
    columns = recipe.calibrate.get("sketch_size", SKETCH_SIZE)
    is_sketched = KINDS[recipe.kind].is_sketched(recipe.calibrate.get("covariance", COVARIANCE))
    if is_sketched and rank > columns:
        raise ValueError(
            f"rank={rank} is beyond a sketch of {columns} columns: take {columns} or less, or calibrate with a larger "
            "sketch_size"
        )
    if recipe.follows_directions:
        return arguments
    limits = [columns] * is_sketched + [n for n in [(recipe.task_subspaces or {}).get("max_rank")] if n]
    limit = arguments.get("max_rank")
    if limits and not isinstance(limit, Mapping):
        arguments["max_rank"] = min(*limits, limit or max(limits))
    return arguments


def allocate_and_decompose(
    model: Any, calibration: Calibration, recipe: Recipe, rank: int, seed: int = 0, progress: bool = True
) -> tuple[Allocation, Subspaces | None]:
    """Allocate, and compute the directions that the ranks are chosen from, if they are.

    By captured gradient the directions come first: as many as ``max_rank`` allows the largest module, by default
    `DIRECTIONS` times the nominal rank. By score the ranks come first, and no directions are returned. Kinds that read
    no weight need no model.
    """
    arguments = allocation_arguments(recipe, rank)
    if not recipe.follows_directions:
        return allocate(calibration.sensitivity, **arguments), None
    limit = arguments.get("max_rank") or DIRECTIONS * rank
    limit = max(limit.values()) if isinstance(limit, Mapping) else limit
    subspaces = decompose(model, calibration, recipe, limit, seed, progress)
    return allocate(calibration.sensitivity, **arguments, subspaces=subspaces), subspaces


def calibrate_on(
    model: Any,
    task: Any,
    arguments: Arguments,
    samples: int = SAMPLES,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> Calibration:
    """Calibrate on training samples of a task, or on batches; the rest are arguments of `calibrate`."""
    logger.info("calibrating on %s", count_text(samples, "sample"))
    batches = task
    if hasattr(task, "calibration"):
        share = max(1, samples // Processes.current().count)  # so that every process has a batch
        batches = task.calibration(samples, min(batch_size, share))
    return calibrate(model, batches, samples=samples, **options | dict(arguments))


def decompose(
    model: Any, calibration: Calibration, recipe: Recipe, ranks: int | Allocation, seed: int = 0, progress: bool = True
) -> Subspaces:
    """Compute the directions of a recipe that has some, up to these ranks unless it sets ``max_rank`` itself."""
    options: dict[str, Any] = {"max_rank": ranks, **(recipe.task_subspaces or {})}
    largest = options["max_rank"]
    largest = max(largest.stored_ranks.values()) if isinstance(largest, Allocation) else largest
    logger.info("directions of kind %s, up to %d in each module", recipe.kind, largest)
    return task_subspaces(model, calibration, **options, seed=seed, progress=progress)
