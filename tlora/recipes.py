"""Recipes: named, frozen sets of arguments of the functions of the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tlora.adapters.attach import attach
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.training.arguments import check_names
from tlora.training.train import train
from tlora.utils.defaults import DIRECTIONS
from tlora.utils.defaults import RECIPES as RECIPE_ARGUMENTS

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
    "model", "batches", "task", "calibration", "sensitivity", "subspaces", "allocation",
    "rank", "seed", "output_dir", "resume", "progress", "callbacks", "replace",
    "config", "samples",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Arguments of the functions of the pipeline, under a name; what is not named is as by default.

    ``tlora.race`` takes recipes among its arms, so that each choice can be tried against the others.

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
        value cannot be written as JSON.

    Examples
    --------
    >>> tlora.Recipe("wider", attach={"rows": "orthonormal"}, allocate={"temperature": 0.5})
    Recipe(wider: allocate(temperature=0.5), attach(rows='orthonormal'))
    >>> tlora.Recipe.named("tlora").task_subspaces
    {'kind': 'fisher'}
    """

    name: str
    calibrate: Arguments = field(default_factory=dict)
    task_subspaces: Arguments | None = field(default_factory=dict)
    allocate: Arguments = field(default_factory=dict)
    attach: Arguments = field(default_factory=dict)
    train: Arguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        for function in _FUNCTIONS:
            arguments = getattr(self, function)
            if arguments is None:
                continue
            _check(function, arguments)
            # A copy, so that changes elsewhere do not reach it.
            object.__setattr__(self, function, Meta(recipe=dict(arguments), versions={}).recipe)

    @staticmethod
    def named(name: str) -> Recipe:
        """The recipe of that ``name``, as for ``tlora run --recipe`` and `tlora.race`; a KeyError names all others."""
        if name not in RECIPES:
            raise KeyError(f"no recipe {name!r}: choose one of {', '.join(RECIPES)}")
        return RECIPES[name]

    def arguments(self) -> dict[str, dict[str, Any] | None]:
        """What differs from the defaults, by function; None where there are no subspaces."""
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


def allocate_and_decompose(
    sensitivity: Sensitivity, arguments: Arguments, decompose: Callable[[int | Allocation], Subspaces | None]
) -> tuple[Allocation, Subspaces | None]:
    """Allocate and compute the subspaces, in the order that the allocation needs.

    By score the ranks come first, and only their directions are computed. By captured gradient the directions come
    first: as many as ``max_rank`` allows the largest module, by default `DIRECTIONS` times the nominal rank.
    ``arguments`` are those of `allocate`; ``decompose`` takes a largest rank or an allocation, and returns None if
    ``A`` is random.
    """
    if arguments.get("by") != "captured" or not arguments.get("adapt_ranks", True):
        allocation = allocate(sensitivity, **arguments)
        return allocation, decompose(allocation)
    most = arguments.get("max_rank") or DIRECTIONS * arguments["rank"]
    subspaces = decompose(max(most.values()) if isinstance(most, Mapping) else most)
    return allocate(sensitivity, **arguments, subspaces=subspaces), subspaces


def _check(function: str, arguments: Arguments) -> None:
    parameters = inspect.signature(_FUNCTIONS[function]).parameters
    named = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD} - _CALLERS
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name in _CALLERS or (name not in named and not open_ended):
            raise TypeError(f"a recipe cannot set {name!r} of {function}(): it has {', '.join(sorted(named))}")
    if open_ended:  # train, which passes the rest on to the Trainer
        check_names(arguments.keys() - named)


RECIPES: dict[str, Recipe] = {name: Recipe(name, **arguments) for name, arguments in RECIPE_ARGUMENTS.items()}
"""Recipes by name: ``tlora``, with ``A`` frozen along the directions of kind ``"fisher"``, ranks by what they capture
of the gradient, and the parameters and scale of uniform ranks; ``tlora-trained``, the same start with ``A`` trained as
well; ``tlora-freeze-late``, with ``A`` trained for the first fifth of the steps; ``tlora-paper``, the published method:
what the functions do by default, with rows of length one; and ``lora``, plain LoRA."""
