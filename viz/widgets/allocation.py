"""An allocation as a state that controls change: its arguments, its line of Python, its picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from mpl_toolkits.axes_grid1 import make_axes_locatable
from mpl_toolkits.axes_grid1.axes_divider import AxesDivider

from tlora.allocation.allocation import Allocation, allocate
from tlora.calibration.sensitivity import Sensitivity
from viz import style
from viz.plots.allocation import finding, left_out
from viz.widgets.canvas import Cells, Headline, boxes, place_boxes, steady

SOURCE = "calibration.sensitivity"
Limit = int | Mapping[str, int] | None
SCORE, EDIT, EXCLUDE = "by score", "edit", "exclude"
WAYS = (SCORE, EDIT, EXCLUDE)


ABOVE, BESIDE, GAP = 0.6, 0.85, 0.06
"""Inches: totals above and beside the heat map, the gap between them."""
FACTOR = 8
"""Colours are full at this many times the uniform rank, and at one part of as many."""


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
    values = {field: getattr(first.options, field) for field in DEFAULTS}
    values["alpha"] = None if options.get("alpha") is None else first.options.alpha
    values["exclude_modules"] = tuple(first.excluded)
    most = values["max_rank"]
    if bound is not None and isinstance(most, Mapping):
        values["max_rank"] = {name: min(most.get(name, bound), bound) for name in sensitivity.names}
    elif bound is not None:
        values["max_rank"] = min(most or bound, bound)
    return AllocationState(rank=first.rank, edits={}, **values)


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
    """The state after ``names`` (full names) are treated in one of `WAYS`; ``rank`` is for an edit, others stay."""
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


class RankPicture:
    """The ranks of an allocation on given axes.

    White is the rank of a uniform allocation and full colour eight times of it, whatever the allocation, so that
    two allocations can be compared by eye. The totals are in multiples of the uniform allocation's.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to draw; the totals take their room from it.
    sensitivity : Sensitivity
        Names the modules that there are.
    """

    @style.styled
    def __init__(self, ax: Axes, sensitivity: Sensitivity) -> None:
        self.names = sensitivity.names
        places = sensitivity.layers, sensitivity.projections
        room = style.inches(ax) - BESIDE - GAP
        self.cells = Cells(ax, *places, room, cmap=style.DIVERGING, norm=Normalize(-1, 1))
        self.marks = boxes(ax, facecolor="none", edgecolor="0.1", linewidth=1.4, zorder=4)
        divider = make_axes_locatable(ax)
        self.above = divider.append_axes("top", ABOVE, pad=GAP, sharex=ax)
        self.beside = divider.append_axes("right", BESIDE, pad=GAP, sharey=ax)
        self._draw_totals()
        self._draw_colours(divider)
        self.headline = Headline(ax, lift=ABOVE + GAP)

    def update(self, allocation: Allocation) -> None:
        """Show an allocation of the sensitivity."""
        ranks = np.array([allocation.ranks.get(name, np.nan) for name in self.names])
        texts = ["" if np.isnan(rank) else f"{rank:.0f}" for rank in ranks]
        self.cells.update(ranks, texts, LogNorm(allocation.rank / FACTOR, allocation.rank * FACTOR))
        self._mark([name in allocation.edits or name in allocation.options.pinned for name in self.names])
        self._set_totals(np.nan_to_num(ranks) / allocation.rank)
        unit = "ranks" if allocation.budget == "ranks" else "entries of B"
        scalings = allocation.scalings.values()
        self.headline.write(
            finding(allocation),
            f"{allocation.budget_used:,} of {allocation.budget_total:,} {unit}",
            f"scaling {style.number(min(scalings))} to {style.number(max(scalings))}",
            "outlined: set by hand" if allocation.edits or allocation.options.pinned else "",
            f"grey: {left_out(allocation)}" if left_out(allocation) else "",
            style.source(allocation.meta),
        )

    def _mark(self, by_hand: list[bool]) -> None:
        x, y = self.cells.first + self.cells.column[by_hand], self.cells.row[by_hand]
        place_boxes(self.marks, x - 0.44, x + 0.44, y - 0.44, y + 0.44)

    def _set_totals(self, shares: np.ndarray) -> None:
        """Bars of the means over a layer or projection of the ranks, as multiples of the uniform one."""
        layers, projections = _means(shares, self.cells.column), _means(shares, self.cells.row)
        x, y = self.cells.first + np.arange(len(layers)), np.arange(len(projections))
        place_boxes(self.layer_bars, x - 0.4, x + 0.4, 0, layers)
        place_boxes(self.projection_bars, 0, projections, y - 0.4, y + 0.4)
        self.above.set_ylim(0, _round_up(layers.max()))
        self.beside.set_xlim(0, _round_up(projections.max()))

    def _draw_totals(self) -> None:
        look: dict[str, Any] = {"facecolor": "0.72", "linewidth": 0, "zorder": 2}
        self.layer_bars, self.projection_bars = boxes(self.above, **look), boxes(self.beside, **look)
        line: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--", "zorder": 3} | style.ink(0.85)
        self.uniform = [self.above.axhline(1, **line), self.beside.axvline(1, **line)]
        self.above.set_ylabel("× uniform")
        self.beside.set_xlabel("× uniform", labelpad=0)
        self.above.tick_params(labelbottom=False, bottom=False)
        self.beside.tick_params(labelleft=False, left=False)
        for panel in (self.above, self.beside):
            steady(panel)
        self.above.spines["bottom"].set_visible(False)
        self.beside.spines["left"].set_visible(False)

    def _draw_colours(self, divider: AxesDivider) -> None:
        """A colour bar in the corner that the two rows of bars leave free."""
        corner = style.figure_of(self.above).add_axes((0, 0, 1, 1), label="colours")
        corner.set_axes_locator(divider.new_locator(nx=2, ny=2))
        corner.axis("off")
        bar = corner.inset_axes((0.08, 0.4, 0.84, 0.18))
        bar.set_title("rank, × uniform", fontsize=8.5, pad=3, loc="center")
        bar.imshow(
            np.linspace(0, 1, 256)[None], cmap=style.DIVERGING, aspect="auto", extent=(0, 1, 0, 1), origin="upper"
        )
        bar.set_xticks([0, 0.5, 1], [f"≤ 1/{FACTOR}", "1", f"≥ {FACTOR}"])
        bar.set_yticks([])
        bar.spines[:].set_visible(False)
        bar.tick_params(length=2, pad=1, labelsize=8)


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of the values of each group; 0 where a layer has no module."""
    return np.bincount(groups, values) / np.maximum(np.bincount(groups), 1)


def _round_up(value: float) -> float:
    """The next of 2, 4, 8 ...: axes that stay as they are while an allocation changes a little."""
    return 2.0 ** max(1, math.ceil(math.log2(1.02 * value)))
