"""An allocation as a state that controls change: its arguments, its line of Python, its changes in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity

SOURCE = "calibration.sensitivity"
Limit = int | Mapping[str, int] | None
SCORE, EDIT, EXCLUDE = "by score", "edit", "exclude"


@dataclass(frozen=True)
class AllocationState:
    """The arguments of `tlora.allocate`, and edits by hand.

    ``exclude_modules`` holds full module names, ``kept`` the allocation that changes are counted from.
    """

    rank: int
    alpha: float | None
    scaling: str
    budget: str
    adapt_ranks: bool
    adapt_scales: bool
    max_rank: Limit
    min_rank: Limit
    pinned: Mapping[str, int]
    exclude_modules: tuple[str, ...]
    temperature: float
    projection_shares: Mapping[str, float]
    edits: Mapping[str, int]
    score: str = "mean"
    kept: Allocation | None = None


DEFAULTS: dict[str, Any] = {
    "alpha": None, "scaling": "nominal", "budget": "ranks", "adapt_ranks": True, "adapt_scales": True, "max_rank": None,
    "min_rank": 1, "pinned": {}, "exclude_modules": [], "temperature": 1.0, "projection_shares": {},
    "score": "mean",
}  # fmt: skip
"""Arguments of `tlora.allocate` that need not be said."""


def starting_state(
    sensitivity: Sensitivity, bound: int | None, rank: SupportsIndex = 8, **options: Any
) -> AllocationState:
    """The state for these arguments of `tlora.allocate`, with no rank above ``bound``; nothing is kept yet."""
    first = allocate(sensitivity, rank, **options)
    state = settled(AllocationState(first.rank, **(DEFAULTS | {"alpha": options.get("alpha")}), edits={}), first)
    return replace(state, max_rank=within(state.max_rank, bound, sensitivity.names))


def settled(state: AllocationState, made: Allocation) -> AllocationState:
    """The state with its arguments as the allocation holds them: plain values, full names, no None but by default."""
    values = {field: getattr(made.options, field) for field in DEFAULTS}
    values["alpha"] = None if state.alpha is None else made.options.alpha
    values["exclude_modules"] = tuple(made.excluded)
    return replace(state, rank=made.rank, edits=dict(made.edits), **values)


def within(most: Limit, bound: int | None, names: Collection[str]) -> Limit:
    """The most rank of each module, or of all, none above ``bound``."""
    if bound is None:
        return most
    if isinstance(most, Mapping):
        return {name: min(most.get(name, bound), bound) for name in names}
    return bound if most is None else min(most, bound)


def allocated(sensitivity: Sensitivity, state: AllocationState, bound: int | None = None) -> Allocation:
    """The allocation of a state; ``bound`` is the most rank that the bases have, for the words of a refusal."""
    try:
        made = allocate(sensitivity, **arguments(sensitivity, state))
        return made.edit(state.edits) if state.edits else made
    except ValueError as refusal:
        if bound is None or "raise max_rank" not in str(refusal) or state.max_rank != bound:
            raise
        more = f"make subspaces of more than {bound} directions, tlora.task_subspaces(..., max_rank=...)"
        raise ValueError(str(refusal).replace("raise max_rank", more)) from None


def arguments(sensitivity: Sensitivity, state: AllocationState) -> dict[str, Any]:
    """What `tlora.allocate` is called with for a state, defaults left out."""
    values = {name: deepcopy(getattr(state, name)) for name in DEFAULTS}
    values["exclude_modules"] = grouped(state.exclude_modules, sensitivity)
    return {"rank": state.rank} | {name: value for name, value in values.items() if value != DEFAULTS[name]}


def code(sensitivity: Sensitivity, state: AllocationState, source: str = SOURCE) -> str:
    """The allocation of a state as one line of Python; ``source`` is the expression for the sensitivity."""
    values = {name: repr(value) for name, value in arguments(sensitivity, state).items()}
    if state.pinned:
        values["pinned"] = ranks_in_words(state.pinned, sensitivity, source)
    text = f"tlora.allocate({', '.join([source, *(f'{name}={value}' for name, value in values.items())])})"
    return f"{text}.edit({ranks_in_words(state.edits, sensitivity, source)})" if state.edits else text


def changes_in_words(allocation: Allocation, kept: Allocation) -> str:
    """How many modules changed, by how much, and which of them most."""
    names = [name for name in allocation.shapes if name in allocation.ranks or name in kept.ranks]
    steps = {name: allocation.ranks.get(name, 0) - kept.ranks.get(name, 0) for name in names}
    moved = sorted((name for name in names if steps[name]), key=lambda name: -abs(steps[name]))
    if not moved:
        scaled = sum(allocation.scalings.get(name, 0) != kept.scalings.get(name, 0) for name in names)
        return f"{scaled} scalings changed, no rank" if scaled else "nothing changed"
    gained, lost = sum(step for step in steps.values() if step > 0), -sum(step for step in steps.values() if step < 0)
    shapes, layers, projections = allocation.shapes, allocation.layers, allocation.projections
    parameters = sum(step * shapes[name][0] for name, step in steps.items())
    most = [f"{_signed(steps[name])} layer {layers[name]} {projections[name]}" for name in moved[:3]]
    return (
        f"{len(moved)} of {len(names)} modules changed, {gained:,} ranks more and {lost:,} fewer, "
        f"{_signed(parameters)} trainable parameters; most: {', '.join(most)}"
    )


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "−")


def decided(state: AllocationState, names: Collection[str], way: str, rank: int = 0) -> AllocationState:
    """The state after ``names`` are ranked by score, edited or excluded; ``rank`` is for an edit, others stay."""
    pins = {name: r for name, r in state.pinned.items() if name not in names}
    hand = {name: r for name, r in state.edits.items() if name not in names}
    kept = [name for name in state.exclude_modules if name not in names]
    return replace(
        state,
        pinned=pins,
        edits=hand | dict.fromkeys(names, rank) if way == EDIT else hand,
        exclude_modules=(*kept, *names) if way == EXCLUDE else tuple(kept),
    )


def grouped(names: Collection[str], sensitivity: Sensitivity) -> list[str | int]:
    """As briefly as ``allocate(exclude_modules=)`` takes modules: whole projections, whole layers, then the rest."""
    found: list[str | int] = []
    left = set(names)
    for roles in (sensitivity.projections, sensitivity.layers):
        for role in dict.fromkeys(roles[name] for name in roles if name in left):
            members = {name for name in sensitivity.names if roles[name] == role}
            if members <= set(names) and members & left:
                found.append(role)
                left -= members
    return found + [name for name in sensitivity.names if name in left]


def ranks_in_words(ranks: Mapping[str, int], sensitivity: Sensitivity, source: str) -> str:
    """A dictionary of ranks as Python text; a projection that has one rank throughout becomes a comprehension."""
    left, parts, projections = dict(ranks), [], sensitivity.projections
    for projection in dict.fromkeys(projections[name] for name in projections if name in ranks):
        members = [name for name in projections if projections[name] == projection]
        values = {ranks.get(name) for name in members}
        if len(members) > 1 and len(values) == 1 and None not in values:
            parts.append(f"{{n: {values.pop()} for n, p in {source}.projections.items() if p == {projection!r}}}")
            left = {name: rank for name, rank in left.items() if name not in members}
    return " | ".join(parts + ([repr(left)] if left or not parts else []))
