"""What a person decides of single modules: ranks that are pinned or edited, modules that are left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tlora.calibration.sensitivity import Sensitivity

SCORE, EDIT, PIN, EXCLUDE = "by score", "edit", "pin", "exclude"
WAYS = (SCORE, EDIT, PIN, EXCLUDE)
MEANINGS = (
    "The scores decide",
    "Set the rank in the finished plan: Allocation.edit",
    "Ask for the rank when the plan is made: allocate(pinned=)",
    "Give no adapter: allocate(exclude=)",
)


def selected(sensitivity: Sensitivity, layer: int | None, projection: str | None) -> list[str]:
    """Modules of a layer and projection, in model order; None stands for all of them."""
    layers, projections = sensitivity.layers, sensitivity.projections
    return [n for n in sensitivity.names if layer in (None, layers[n]) and projection in (None, projections[n])]


def decided(
    names: Collection[str], way: str, rank: int, pinned: Mapping[str, int], edits: Mapping[str, int], out: Sequence[str]
) -> dict[str, Any]:
    """The fields of a state after ``names`` are treated in one of `WAYS`; other modules stay as they are.

    Parameters
    ----------
    names : collection of str
        Full module names.
    way : str
        One of `WAYS`.
    rank : int
        For an edit or a pin.
    pinned, edits : mapping of int
        Ranks so far.
    out : sequence of str
        Full names of the modules that are excluded so far.

    Returns
    -------
    dict
        New ``pinned``, ``edits`` and ``exclude``.
    """
    pins = {name: r for name, r in pinned.items() if name not in names}
    hand = {name: r for name, r in edits.items() if name not in names}
    kept = [name for name in out if name not in names]
    ranks = dict.fromkeys(names, rank)
    return {
        "pinned": pins | ranks if way == PIN else pins,
        "edits": hand | ranks if way == EDIT else hand,
        "exclude": (*kept, *names) if way == EXCLUDE else tuple(kept),
    }


def way_of(name: str, pinned: Collection[str], edits: Collection[str], out: Collection[str]) -> str:
    """How a module is treated; an edit goes before a pin, as in the plan."""
    return EXCLUDE if name in out else EDIT if name in edits else PIN if name in pinned else SCORE


def grouped(names: Collection[str], sensitivity: Sensitivity) -> list[str | int]:
    """The modules as briefly as ``allocate(exclude=)`` takes them: whole projections, whole layers, then the rest."""
    found: list[str | int] = []
    left = set(names)
    for roles in (sensitivity.projections, sensitivity.layers):
        for role in dict.fromkeys(roles.values()):
            members = {name for name in sensitivity.names if roles[name] == role}
            if members <= set(names) and members & left:
                found.append(role)  # type: ignore[arg-type]
                left -= members
    return found + [name for name in sensitivity.names if name in left]


def ranks_in_words(ranks: Mapping[str, int], sensitivity: Sensitivity, source: str) -> str:
    """A dictionary of ranks as Python text; a projection that has one rank throughout becomes a comprehension."""
    left, parts = dict(ranks), []
    for projection in dict.fromkeys(sensitivity.projections.values()):
        members = selected(sensitivity, None, projection)
        values = {ranks.get(name) for name in members}
        if len(members) > 1 and len(values) == 1 and None not in values:
            parts.append(f"{{n: {values.pop()} for n, p in {source}.projections.items() if p == {projection!r}}}")
            left = {name: rank for name, rank in left.items() if name not in members}
    return " | ".join(parts + ([repr(left)] if left or not parts else []))
