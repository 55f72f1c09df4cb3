"""An allocation as a state that controls change: the arguments of `tlora.allocate`, presets, and its line of Python."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.subspaces.subspaces import Subspaces

SOURCE = "calibration.sensitivity"
RankLimit = int | Mapping[str, int] | None
SCORE, EDIT, EXCLUDE = "by score", "edit", "exclude"
"""How the rank of a module is decided."""
QUERY_OR_VALUE = re.compile(r"(^|[._])(q|v|wq|wv|query|value)(_proj|_lin|_linear)?$")
ATTENTION = re.compile(r"att(entio)?n|(^|[._])[qkvo]_proj$", re.IGNORECASE)
PRESETS = {
    "uniform": "The same rank for every module: in our study it learned more than ranks by score",
    "q and v": "The same rank for queries and values, none elsewhere; the budget stays",
    "attention": "Ranks by score within attention, none elsewhere; the budget stays",
    "by score": "Ranks in proportion to the scores, nothing by hand",
    "by gradient": "Ranks by the gradient that the directions capture, nothing by hand",
    "default": "All options of tlora.allocate at their defaults",
}
"""Presets, and what each of them does."""


@dataclass(frozen=True)
class AllocationState:
    """The arguments of `tlora.allocate`, and edits by hand.

    ``exclude_modules`` holds full module names, ``kept`` the allocation that changes are counted from, and
    ``directions`` what ranks by captured gradient read.
    """

    rank: int
    alpha: float | None
    scaling: str
    budget: str
    adapt_ranks: bool
    adapt_scales: bool
    max_rank: RankLimit
    min_rank: RankLimit
    pinned: Mapping[str, int]
    exclude_modules: tuple[str, ...]
    temperature: float
    edits: Mapping[str, int]
    score: str = "mean"
    by: str = "score"
    directions: Subspaces | Allocation | None = None
    kept: Allocation | None = None


DEFAULTS: dict[str, Any] = {
    "alpha": None, "scaling": "nominal", "budget": "ranks", "adapt_ranks": True, "adapt_scales": True, "max_rank": None,
    "min_rank": 1, "pinned": {}, "exclude_modules": [], "temperature": 1.0,
    "score": "mean", "by": "score",
}  # fmt: skip
"""Arguments of `tlora.allocate` that need not be written."""


def initial_state(
    sensitivity: Sensitivity,
    bound: int | None,
    rank: SupportsIndex = 8,
    directions: Subspaces | Allocation | None = None,
    **options: Any,
) -> AllocationState:
    """The state for these arguments of `tlora.allocate`, with no rank above ``bound``; nothing is kept yet."""
    first = allocate(sensitivity, rank, subspaces=directions if options.get("by") == "captured" else None, **options)
    alpha = None if options.get("alpha") is None else first.options.alpha
    limit = clamp_limit(first.options.max_rank, bound, sensitivity.names)
    return replace(state_from_allocation(first), alpha=alpha, max_rank=limit, directions=directions)


def state_from_allocation(allocation: Allocation) -> AllocationState:
    """The state whose allocation this is; nothing is kept yet."""
    alpha = allocation.options.alpha
    values = DEFAULTS | {"alpha": None if alpha == allocation.rank else alpha}
    directions = allocation if allocation.energies else None
    return normalize_state(AllocationState(allocation.rank, **values, edits={}, directions=directions), allocation)


def normalize_state(state: AllocationState, allocation: Allocation) -> AllocationState:
    """The state with its arguments as the allocation holds them: plain values, full names, None only as a default."""
    values = {field: getattr(allocation.options, field) for field in DEFAULTS}
    values["alpha"] = None if state.alpha is None else allocation.options.alpha
    values["exclude_modules"] = tuple(allocation.excluded)
    return replace(state, rank=allocation.rank, edits=dict(allocation.edits), **values)


def clamp_limit(limit: RankLimit, bound: int | None, names: Collection[str]) -> RankLimit:
    """The largest rank of each module, or of all, none above ``bound``."""
    if bound is None:
        return limit
    if isinstance(limit, Mapping):
        return {name: min(limit.get(name, bound), bound) for name in names}
    return bound if limit is None else min(limit, bound)


def allocate_state(sensitivity: Sensitivity, state: AllocationState, bound: int | None = None) -> Allocation:
    """The allocation of a state; ``bound``, the largest rank of the bases, is for the words of a refusal."""
    try:
        allocation = allocate(sensitivity, **allocate_arguments(sensitivity, state))
        return allocation.edit(state.edits) if state.edits else allocation
    except ValueError as refusal:
        if bound is None or "raise max_rank" not in str(refusal) or state.max_rank != bound:
            raise
        more = f"make subspaces of more than {bound} directions, tlora.task_subspaces(..., max_rank=...)"
        raise ValueError(str(refusal).replace("raise max_rank", more)) from None


def allocate_arguments(sensitivity: Sensitivity, state: AllocationState) -> dict[str, Any]:
    """What `tlora.allocate` is called with for a state, defaults left out."""
    values = {name: deepcopy(getattr(state, name)) for name in DEFAULTS}
    values["exclude_modules"] = group_modules(state.exclude_modules, sensitivity)
    read = {"subspaces": state.directions} if state.by == "captured" else {}
    return {"rank": state.rank} | {name: value for name, value in values.items() if value != DEFAULTS[name]} | read


def argument_texts(sensitivity: Sensitivity, state: AllocationState) -> dict[str, str]:
    """The same as Python text; what ranks by captured gradient read has a name."""
    named = {"subspaces": "allocation" if isinstance(state.directions, Allocation) else "subspaces"}
    return {name: named.get(name) or repr(value) for name, value in allocate_arguments(sensitivity, state).items()}


def browser_rule(sensitivity: Sensitivity, state: AllocationState, allocation: Allocation) -> dict[str, Any]:
    """The state of an allocation as JSON values, from which a page without a kernel computes it (``allocate.js``)."""
    names, shapes = sensitivity.names, sensitivity.shapes
    fields = ("rank", "alpha", "scaling", "budget", "adapt_ranks", "adapt_scales", "temperature")
    floors, limits = [
        limit if isinstance(limit, Mapping) else dict.fromkeys(names, default if limit is None else limit)
        for limit, default in ((state.min_rank, 1), (state.max_rank, math.inf))
    ]
    code = {name: text for name, text in argument_texts(sensitivity, state).items() if name != "pinned"}
    energies = allocation.energies
    known = {name: len(values) for name, values in energies.items()}
    return {name: getattr(state, name) for name in fields} | {
        "scores": list(sensitivity.rescale(state.score).scores.values()),
        "energies": [energies.get(name, []) for name in names] if allocation.options.is_by_energy else None,
        "floors": [floors.get(name, 1) for name in names],
        "ceilings": [min(*shapes[name], *(one.get(name, math.inf) for one in (limits, known))) for name in names],
        "edits": {names.index(name): rank for name, rank in {**state.pinned, **state.edits}.items()},
        "excluded": sorted(names.index(name) for name in state.exclude_modules),
        "code": code,
    }


def allocation_code(sensitivity: Sensitivity, state: AllocationState, source: str = SOURCE) -> str:
    """The allocation of a state as one line of Python; ``source`` is the expression for the sensitivity."""
    values = argument_texts(sensitivity, state)
    if state.pinned:
        values["pinned"] = ranks_code(state.pinned, sensitivity, source)
    text = f"tlora.allocate({', '.join([source, *(f'{name}={value}' for name, value in values.items())])})"
    return f"{text}.edit({ranks_code(state.edits, sensitivity, source)})" if state.edits else text


def decide_ranks(state: AllocationState, names: Collection[str], way: str, rank: int = 0) -> AllocationState:
    """The state after ``names`` are ranked by score, edited to ``rank``, or excluded."""
    pinned = {name: r for name, r in state.pinned.items() if name not in names}
    edits = {name: r for name, r in state.edits.items() if name not in names}
    excluded = [name for name in state.exclude_modules if name not in names]
    return replace(
        state,
        pinned=pinned,
        edits=edits | dict.fromkeys(names, rank) if way == EDIT else edits,
        exclude_modules=(*excluded, *names) if way == EXCLUDE else tuple(excluded),
    )


def group_modules(names: Collection[str], sensitivity: Sensitivity) -> list[str | int]:
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
        if len(members) > 1 and len(values) == 1 and None not in values:
            parts.append(f"{{n: {values.pop()} for n, p in {source}.projections.items() if p == {projection!r}}}")
            left = {name: rank for name, rank in left.items() if name not in members}
    return " | ".join(parts + ([repr(left)] if left or not parts else []))


def available_presets(sensitivity: Sensitivity, knows_directions: bool) -> list[str]:
    """The presets that make sense for these modules, with or without known directions of a gradient."""
    adapted = {name: preset_modules(name, sensitivity) for name in ("q and v", "attention")}
    possible = [name for name in PRESETS if name not in adapted or 0 < len(adapted[name]) < len(sensitivity.names)]
    return [name for name in possible if knows_directions or name != "by gradient"]


def preset_modules(name: str, sensitivity: Sensitivity) -> list[str]:
    """The modules that a preset adapts."""
    if name == "q and v":
        return [n for n, projection in sensitivity.projections.items() if QUERY_OR_VALUE.search(projection)]
    return [n for n in sensitivity.names if name != "attention" or ATTENTION.search(n)]


def apply_preset(name: str, state: AllocationState, sensitivity: Sensitivity, bound: int | None) -> AllocationState:
    """The state of a preset: edits by hand go, the rank and the kept allocation stay."""
    if name not in (known := available_presets(sensitivity, state.directions is not None)):
        raise KeyError(f"no preset {name!r} for these modules: choose from {', '.join(known)}")
    if name == "default":
        return replace(initial_state(sensitivity, bound, state.rank, state.directions), kept=state.kept)
    adapted = set(preset_modules(name, sensitivity))
    return replace(
        state,
        adapt_ranks=True,
        by="captured" if name == "by gradient" else "score",
        temperature=0.0 if name in ("uniform", "q and v") else 1.0,
        exclude_modules=tuple(n for n in sensitivity.names if n not in adapted),
        pinned={},
        edits={},
    )


def control_values(state: AllocationState, allocation: Allocation, most: int) -> dict[str, Any]:
    """Values of the controls; None for a limit that is not one number for all modules, and for what has no effect."""

    def number(limit: RankLimit, default: int) -> int | None:
        return None if isinstance(limit, Mapping) else default if limit is None else limit

    return {
        "budget": state.budget,
        "scaling": state.scaling,
        "rank": state.rank,
        "temperature": None if allocation.options.is_by_energy and not state.adapt_scales else state.temperature,
        "min_rank": number(state.min_rank, 1),
        "max_rank": number(state.max_rank, most),
    }
