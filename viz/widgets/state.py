"""An allocation as a state that controls change: options, edits by hand, presets, and its line of Python."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tlora.allocation.allocate import apply_options, ranks_to_edit
from tlora.allocation.allocation import Allocation, edit_ranks
from tlora.allocation.constraints import excluded_modules, rank_ceiling, rank_floor
from tlora.allocation.options import AllocationOptions
from tlora.calibration.sensitivity import Sensitivity
from tlora.recipes import RECIPES
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.validation import require_positive_int

SOURCE = "calibration.sensitivity"
SCORE, EDIT, EXCLUDE = "by score", "edit", "exclude"
"""How the rank of a module is decided."""
CONTROLS = ("budget", "scaling", "rank", "temperature", "min_rank", "max_rank")
"""Options that have a control."""
QUERY_OR_VALUE = re.compile(r"(^|[._])(q|v|wq|wv|query|value)(_proj|_lin|_linear)?$")
IN_ATTENTION = re.compile(r"att(entio)?n|(^|[._])[qkvo]_proj$", re.IGNORECASE)
METHODS: dict[str, dict[str, Any]] = {"captured": dict(RECIPES["captured"].allocate), "as published": {}}
"""Presets that set all options of `tlora.allocate` but the rank: those of the default recipe, and as published."""

ALLOCATION_PRESETS = {
    "captured": "Ranks by the gradient that the directions capture, one scale: what tlora.prepare decides by default",
    "as published": (
        "Ranks and scales in proportion to the scores, as published; the directions of A stay what they are: "
        "tlora.prepare(model, task, 'tlora-paper') computes the published ones"
    ),
    "uniform": "The same rank for every module: in our study it learned more than ranks by score",
    "q and v": "The same rank for queries and values, none elsewhere; the budget stays",
    "attention": "Ranks by score within attention, none elsewhere; the budget stays",
    "by score": "Ranks in proportion to the scores, nothing by hand",
}
"""Presets, and what each of them does."""


@dataclass(frozen=True)
class AllocationState:
    """What decides the allocation that is shown, and the ``kept`` one that changes are counted from.

    ``options`` have the excluded modules by their full names, ``edits`` are ranks set by hand, and ``directions`` what
    ranks by captured gradient read.
    """

    options: AllocationOptions
    edits: Mapping[str, int] = field(default_factory=dict)
    directions: Subspaces | Allocation | None = None
    kept: Allocation | None = None

    def __post_init__(self) -> None:
        edits = {name: require_positive_int(rank, f"rank of {name}") for name, rank in self.edits.items()}
        object.__setattr__(self, "edits", edits)


def state_from_allocation(allocation: Allocation) -> AllocationState:
    """The state whose allocation this is; nothing is kept yet."""
    alpha = None if allocation.alpha == allocation.rank else allocation.alpha
    options = replace(allocation.options, alpha=alpha, exclude_modules=allocation.excluded)
    return AllocationState(options, allocation.edits, allocation if allocation.energies else None)


def normalize_options(options: AllocationOptions, sensitivity: Sensitivity) -> AllocationOptions:
    """The options with excluded modules by their full names, and defaults as written (a temperature of 1 is 1.0)."""
    excluded = excluded_modules(options.exclude_modules, sensitivity.targets)
    return AllocationOptions(**options.arguments | {"exclude_modules": excluded})


def limit_ranks(options: AllocationOptions, bound: int | None, names: Collection[str]) -> AllocationOptions:
    """The options with no largest rank of a module above ``bound``."""
    limit = options.max_rank
    if bound is None:
        return options
    if isinstance(limit, dict):
        return replace(options, max_rank={n: min(limit.get(n, bound), bound) for n in dict.fromkeys([*names, *limit])})
    return replace(options, max_rank=bound if limit is None else min(limit, bound))


def allocate_state(sensitivity: Sensitivity, state: AllocationState, bound: int | None = None) -> Allocation:
    """The allocation of a state; ``bound``, the largest rank of the bases, is for the words of a refusal."""
    with _naming_bases(state.options, bound):
        return apply_options(sensitivity, *_arguments(sensitivity, state))


def edit_state(allocation: Allocation, state: AllocationState, bound: int | None = None) -> Allocation:
    """The allocation of a state whose options are those of ``allocation``: its limits are checked with the edits alone.

    ``bound`` is as in `allocate_state`.
    """
    if list(state.edits.items()) == list(allocation.edits.items()):
        return allocation
    with _naming_bases(state.options, bound):
        return edit_ranks(allocation, dict(state.edits))


def nearest_rank(
    sensitivity: Sensitivity, state: AllocationState, names: Collection[str], present: int, rank: int
) -> int | None:
    """The possible rank of ``names`` that is nearest to ``rank``, on the side of the present one; None if none is."""
    try:
        ranks = ranks_to_edit(sensitivity, *_arguments(sensitivity, decide_ranks(state, names, EDIT, 1)), names)
    except ValueError:  # such as a module that was left out and has no room beside the least ranks of the others
        return None
    if not ranks:
        return None
    nearest = min(max(rank, ranks[0]), ranks[-1])
    return nearest if min(present, rank) <= nearest <= max(present, rank) else None


def _arguments(sensitivity: Sensitivity, state: AllocationState) -> tuple[AllocationOptions, Any, Mapping[str, int]]:
    """Options, directions and edits, as `apply_options` takes them."""
    options = replace(state.options, exclude_modules=group_modules(state.options.exclude_modules, sensitivity))
    return options, state.directions if options.by == "captured" else None, state.edits


@contextlib.contextmanager
def _naming_bases(options: AllocationOptions, bound: int | None) -> Iterator[None]:
    """Have a refusal that asks for a larger max_rank ask for more directions, if these set it."""
    try:
        yield
    except ValueError as refusal:
        if bound is None or "raise max_rank" not in str(refusal) or options.max_rank != bound:
            raise
        more = f"make subspaces of more than {bound} directions, tlora.task_subspaces(..., max_rank=...)"
        raise ValueError(str(refusal).replace("raise max_rank", more)) from None


def allocate_arguments(sensitivity: Sensitivity, state: AllocationState) -> dict[str, Any]:
    """What `tlora.allocate` is called with for a state, defaults left out."""
    values = state.options.arguments
    if "exclude_modules" in values:
        values["exclude_modules"] = group_modules(state.options.exclude_modules, sensitivity)
    return values | ({"subspaces": state.directions} if state.options.by == "captured" else {})


def argument_texts(sensitivity: Sensitivity, state: AllocationState) -> dict[str, str]:
    """The same as Python text; what ranks by captured gradient read has a name."""
    named = {"subspaces": "allocation" if isinstance(state.directions, Allocation) else "subspaces"}
    return {name: named.get(name) or repr(value) for name, value in allocate_arguments(sensitivity, state).items()}


def browser_rule(sensitivity: Sensitivity, state: AllocationState, allocation: Allocation) -> dict[str, Any]:
    """The state of an allocation as JSON values, from which a page without a kernel computes it (``allocate.js``)."""
    names, options, energies = sensitivity.names, state.options, allocation.energies
    fields = ("rank", "alpha", "scaling", "budget", "adapt_ranks", "adapt_scales", "temperature")
    ceilings = [rank_ceiling(options, target, energies.get(name)) for name, target in sensitivity.targets.items()]
    code = {name: text for name, text in argument_texts(sensitivity, state).items() if name != "pinned"}
    return {name: getattr(options, name) for name in fields} | {
        "scores": list(sensitivity.rescale(options.score).scores.values()),
        "energies": [energies.get(name, []) for name in names] if options.is_captured else None,
        "floors": [rank_floor(options, name) for name in names],
        "ceilings": [ceiling.rank for ceiling in ceilings],
        "edits": {names.index(name): rank for name, rank in {**options.pinned, **state.edits}.items()},
        "excluded": [k for k, name in enumerate(names) if name in options.exclude_modules],
        "code": code,
    }


def allocation_code(sensitivity: Sensitivity, state: AllocationState, source: str = SOURCE) -> str:
    """The allocation of a state as one line of Python; ``source`` is the expression for the sensitivity."""
    values = argument_texts(sensitivity, state)
    if state.options.pinned:
        values["pinned"] = ranks_code(state.options.pinned, sensitivity, source)
    text = f"tlora.allocate({', '.join([source, *(f'{name}={value}' for name, value in values.items())])})"
    return f"{text}.edit({ranks_code(state.edits, sensitivity, source)})" if state.edits else text


def decide_ranks(state: AllocationState, names: Collection[str], way: str, rank: int = 0) -> AllocationState:
    """The state after ``names`` are ranked by score, edited to ``rank``, or excluded."""
    excluded = [name for name in state.options.exclude_modules if name not in names]
    options = replace(
        state.options,
        pinned={name: pin for name, pin in state.options.pinned.items() if name not in names},
        exclude_modules=[*excluded, *names] if way == EXCLUDE else excluded,
    )
    edits = {name: edit for name, edit in state.edits.items() if name not in names}
    return replace(state, options=options, edits=edits | dict.fromkeys(names, rank) if way == EDIT else edits)


def group_modules(names: Collection[str | int], sensitivity: Sensitivity) -> list[str | int]:
    """As briefly as ``allocate(exclude_modules=)`` takes modules: whole projections, whole layers, then the rest."""
    groups: list[str | int] = []
    left = set(names)
    for roles in (sensitivity.projections, sensitivity.layers):
        for role in dict.fromkeys(roles[name] for name in roles if name in left):
            members = {name for name in sensitivity.names if roles[name] == role}
            if members <= set(names) and members & left:
                groups.append(role)
                left -= members
    return groups + [name for name in sensitivity.names if name in left]


def ranks_code(ranks: Mapping[str, int], sensitivity: Sensitivity, source: str) -> str:
    """A dictionary of ranks as Python text; a projection that has one rank throughout becomes a comprehension."""
    left, parts, projections = dict(ranks), [], sensitivity.projections
    for projection in dict.fromkeys(projections[name] for name in projections if name in ranks):
        members = [name for name in projections if projections[name] == projection]
        values = {ranks.get(name) for name in members}
        if any(sensitivity.targets[name].part == "experts" for name in members):
            continue  # the source has each expert by its number, not their parameter
        if len(members) > 1 and len(values) == 1 and None not in values:
            parts.append(f"{{n: {values.pop()} for n, p in {source}.projections.items() if p == {projection!r}}}")
            left = {name: rank for name, rank in left.items() if name not in members}
    return " | ".join(parts + ([repr(left)] if left or not parts else []))


def available_presets(sensitivity: Sensitivity, knows_directions: bool) -> list[str]:
    """The presets that make sense for these modules, with or without known directions of a gradient."""
    adapted = {name: preset_modules(name, sensitivity) for name in ("q and v", "attention")}
    possible = [
        name for name in ALLOCATION_PRESETS if name not in adapted or 0 < len(adapted[name]) < len(sensitivity.names)
    ]
    return [name for name in possible if knows_directions or name != "captured"]


def preset_modules(name: str, sensitivity: Sensitivity) -> list[str]:
    """The modules that a preset adapts."""
    if name == "q and v":
        return [n for n, projection in sensitivity.projections.items() if QUERY_OR_VALUE.search(projection)]
    return [n for n in sensitivity.names if name != "attention" or IN_ATTENTION.search(n)]


def apply_preset(name: str, state: AllocationState, sensitivity: Sensitivity, bound: int | None) -> AllocationState:
    """The state of a preset: edits by hand go, the rank and the kept allocation stay."""
    if name not in (known := available_presets(sensitivity, state.directions is not None)):
        raise KeyError(f"no preset {name!r} for these modules: choose from {', '.join(known)}")
    if name in METHODS:
        options = AllocationOptions(state.options.rank, **METHODS[name])
        return replace(state, options=limit_ranks(options, bound, sensitivity.names), edits={})
    adapted = set(preset_modules(name, sensitivity))
    options = replace(
        state.options,
        adapt_ranks=True,
        by="score",
        temperature=0.0 if name in ("uniform", "q and v") else 1.0,
        exclude_modules=[n for n in sensitivity.names if n not in adapted],
        pinned={},
    )
    return replace(state, options=options, edits={})


def control_values(options: AllocationOptions, largest: int) -> dict[str, Any]:
    """Values of the controls; None for a limit that is not one number for all modules, and for what has no effect."""
    values = {name: getattr(options, name) for name in CONTROLS}
    if options.is_captured and not options.adapt_scales:
        values["temperature"] = None
    if options.max_rank is None:
        values["max_rank"] = largest
    return {name: None if isinstance(value, dict) else value for name, value in values.items()}
