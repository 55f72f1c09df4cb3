"""AllocationExplorer: turn the options of an allocation and see at once where the rank goes and what it costs."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, SupportsIndex

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from mpl_toolkits.axes_grid1 import make_axes_locatable
from mpl_toolkits.axes_grid1.axes_divider import AxesDivider

from tlora.allocation.allocation import Allocation, allocate
from tlora.allocation.footprint import size_text
from tlora.calibration.sensitivity import Sensitivity
from tlora.subspaces.subspaces import Subspaces
from viz import style
from viz.plots import heatmap
from viz.plots.allocation import finding
from viz.widgets.base import WIDTH, Explorer, alert, choice, row, table
from viz.widgets.canvas import Cells, Headline, boxes, place_boxes, steady

SOURCE = "calibration.sensitivity"
RANKS, CHANGE = "ranks", "change since the kept allocation"
Limit = int | Mapping[str, int] | None
SCORE, EDIT, PIN, EXCLUDE = "by score", "edit", "pin", "exclude"
WAYS = (SCORE, EDIT, PIN, EXCLUDE)
MEANINGS = (
    "The scores decide",
    "Set the rank in the finished allocation: Allocation.edit",
    "Ask for the rank when the allocation is made: allocate(pinned=)",
    "Give no adapter: allocate(exclude_modules=)",
)


ABOVE, BESIDE, GAP = 0.6, 0.85, 0.06
"""Inches: totals above and beside the heat map, the gap between them."""
FACTOR = 8
"""Colours are full at this many times the uniform rank, and at one part of as many."""


@dataclass(frozen=True)
class AllocationState:
    """The arguments of `tlora.allocate`, edits by hand, and what is drawn of the allocation.

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
    view: str = RANKS
    kept: Allocation | None = None


DEFAULTS: dict[str, Any] = {
    "alpha": None, "scaling": "nominal", "budget": "ranks", "adapt_ranks": True, "adapt_scales": True, "max_rank": None,
    "min_rank": 1, "pinned": {}, "exclude_modules": [], "temperature": 1.0, "projection_shares": {},
}  # fmt: skip
"""Arguments of `tlora.allocate` that need not be said."""


class AllocationExplorer(Explorer[AllocationState, Allocation]):
    """Options of an allocation, with the ranks they lead to, what these cost, and what uniform LoRA would cost.

    ``explorer.allocation`` is the allocation that is shown: what the next cell attaches and trains.

    Parameters
    ----------
    subspaces : Subspaces or None
        The bases that will be attached; no rank goes beyond theirs. None where there are none yet.
    sensitivity : Sensitivity
        From ``calibration.sensitivity``.
    rank : int
        Nominal rank to begin with.
    **options
        Other arguments of `tlora.allocate` to begin with; those without a control stay as they are.

    Attributes
    ----------
    allocation : Allocation
        The allocation; the last possible one where the controls ask for something impossible.
    options : dict
        ``tlora.allocate(sensitivity, **explorer.options).edit(explorer.state.edits)`` is the allocation.
    kept : Allocation
        The allocation that ``changes`` counts from.

    Raises
    ------
    TypeError, KeyError, ValueError
        If `tlora.allocate` refuses the options to begin with; if subspaces and sensitivity are of different modules.
    """

    def __init__(
        self, subspaces: Subspaces | None, sensitivity: Sensitivity, *, rank: SupportsIndex = 8, **options: Any
    ) -> None:
        self._bound = None if not isinstance(subspaces, Subspaces) else subspaces.max_rank
        state = starting_state(sensitivity, self._bound, rank, **options)
        if not isinstance(subspaces, Subspaces | None):
            raise TypeError(
                f"subspaces are a {type(subspaces).__name__}: pass what tlora.task_subspaces returned, or None"
            )
        if subspaces is not None and subspaces.names != sensitivity.names:
            raise ValueError(
                f"the subspaces are of {len(subspaces.names)} modules and the sensitivity of "
                f"{len(sensitivity.names)} others: pass two results of one calibration"
            )
        self.sensitivity = sensitivity
        super().__init__(replace(state, kept=self.result(state)))
        self._start = self.state
        self._build()
        self._answer_while_busy()
        self._refresh()

    @property
    def allocation(self) -> Allocation:
        """The allocation that is shown."""
        return self._result

    @property
    def kept(self) -> Allocation:
        """The allocation that changes are counted from."""
        assert self.state.kept is not None
        return self.state.kept

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `tlora.allocate` for this allocation, those that are not the default; edits come on top."""
        return arguments(self.sensitivity, self.state)

    @property
    def changes(self) -> pd.DataFrame:
        """``allocation.compare(kept)``: what the allocation gives to each module, beside the kept one."""
        return self._result.compare(self.kept)

    def code(self, source: str = SOURCE) -> str:
        """The allocation as one line of Python.

        Parameters
        ----------
        source : str
            Expression for the sensitivity.

        Returns
        -------
        str
            ``tlora.allocate(...)``, with ``.edit(...)`` where ranks were set by hand.
        """
        return code(self.sensitivity, self.state, source)

    def keep(self) -> None:
        """Count changes from the allocation as it is now; what could not be met is asked for no longer."""
        self.state = self._asked = replace(self.state, kept=self._result)
        self.message.value = ""
        self._refresh()

    def start_over(self) -> None:
        """Go back to the allocation of the beginning; the kept allocation stays."""
        self._ask(**{f.name: getattr(self._start, f.name) for f in fields(self._start) if f.name != "kept"})

    def result(self, state: AllocationState) -> Allocation:
        """The allocation of ``state``: `tlora.allocate`, then its edits."""
        return allocated(self.sensitivity, state, self._bound)

    def render(self, state: AllocationState, ax: Axes) -> Axes:
        """Draw the allocation of a state.

        Parameters
        ----------
        state : AllocationState
            For example ``explorer.state``.
        ax : matplotlib.axes.Axes
            Where to draw; the totals take their room from it.

        Returns
        -------
        matplotlib.axes.Axes
            The axes of the heat map.
        """
        self._update(RankPicture(ax, self.sensitivity), state, self.result(state))
        return ax

    @property
    def line(self) -> str:
        """The allocation in one line of text."""
        return f"{finding(self._result)}: {self.code()}"

    def _build(self) -> None:
        """Make the controls and lay them out, in the order in which Tab goes through them."""
        most = self._bound or max(min(shape) for shape in self.sensitivity.shapes.values())
        self._watch(**_knob_controls(self.state, most if self._bound else min(most, 256), most))
        self.controls |= _hand_controls(self.sensitivity, most)
        for name in ("layer", "projection"):
            self.controls[name].observe(lambda change: self._show_selected(), "value")
        self.controls["way"].observe(lambda change: self._decide(change["new"]), "value")
        self.controls["set_rank"].observe(lambda change: self._decide(self._rank_way()), "value")
        view = choice("Show", (RANKS, CHANGE), self.state.view, ("Rank of each module", "In ranks, module by module"))
        view.observe(lambda change: self._look(change["new"]), "value")
        self.controls["view"] = view
        self.controls |= _buttons(keep=self.keep, start_over=self.start_over)
        rows = ("rank temperature", "budget scaling min_rank max_rank", "layer projection way set_rank")
        options, limits, hand = ([self.controls[name] for name in names.split()] for names in rows)
        above = [row(*options), row(*limits), row(ipywidgets.Label("By hand:"), *hand)]
        below = row(*(self.controls[name] for name in ("view", "keep", "start_over")))
        self.summary = ipywidgets.HTML(layout={"max_width": f"{96 * WIDTH:.0f}px"})
        self.widget = ipywidgets.VBox([*above, self.message, self.image, below, self.summary])
        frame = self.sensitivity.to_frame()
        self._canvas = self._paper(heatmap.size(frame)[0], 2.0 + 0.27 * len(style.projections(frame)))
        label = 0.075 * max(map(len, style.projections(frame)))
        self._drawn = RankPicture(self._canvas.axes(0.45 + label, 0.12, 0.5, 0.5), self.sensitivity)

    def _look(self, view: str) -> None:
        """Draw ranks or changes, also while something that cannot be is asked for."""
        if not self._following:
            self.state, self._asked = replace(self.state, view=view), replace(self._asked, view=view)
            self._draw()

    def _draw(self) -> None:
        self._update(self._drawn, self.state, self._result)
        self.image.value = self._canvas.png(self._drawn.moving, self._drawn.key)

    def _refresh(self) -> None:
        self._draw()
        self.summary.value = "".join(
            (costs(self._result), changed(self._result, self.kept), f"<code>{html.escape(self.code())}</code>")
        )
        with self._follow():
            for name in ("rank", "temperature", "budget", "scaling", "view"):
                self.controls[name].value = getattr(self.state, name)
            for name in ("min_rank", "max_rank"):
                limit = getattr(self.state, name)
                if not isinstance(limit, Mapping):
                    self.controls[name].value = limit or self.controls[name].max
        self._show_selected()

    def _update(self, picture: RankPicture, state: AllocationState, allocation: Allocation) -> None:
        other = state.kept if state.view == CHANGE else None
        picture.update(allocation, other)
        unit = "ranks" if allocation.budget == "ranks" else "entries of B"
        scalings = allocation.scalings.values()
        picture.headline.write(
            finding(allocation),
            f"{allocation.budget_used:,} of {allocation.budget_total:,} {unit}",
            f"scaling {style.number(min(scalings))} to {style.number(max(scalings))}",
            "outlined: set by hand" if allocation.edits or allocation.options.pinned else "",
            f"grey: {len(allocation.excluded)} excluded" if allocation.excluded and other is None else "",
            style.source(allocation.meta),
        )

    def _selected(self) -> list[str]:
        layer, projection = self.controls["layer"].value, self.controls["projection"].value
        return selected(self.sensitivity, layer, projection)

    def _rank_way(self) -> str:
        return PIN if self.controls["way"].value == PIN else EDIT

    def _decide(self, way: str | None) -> None:
        """Treat the selected modules in one of `by_hand.WAYS`; what is refused is not asked for again."""
        if self._following or way is None:
            return
        before, names, rank = self._asked, self._selected(), self.controls["set_rank"].value
        if not names:
            self.message.value = alert("there is no such projection in this layer: choose another")
            return
        self._ask(**decided(names, way, rank, before.pinned, before.edits, before.exclude_modules))
        if self.state is not self._asked:
            self._asked = before
            self._show_selected()

    def _show_selected(self) -> None:
        """Say of the selected modules how they are treated and which rank they have, where that is one answer."""
        state, names = self.state, self._selected()
        ways = {way_of(name, state.pinned, state.edits, state.exclude_modules) for name in names}
        ranks = {self._result.ranks.get(name) for name in names} - {None}
        with self._follow():
            self.controls["way"].value = ways.pop() if len(ways) == 1 else None
            self.controls["set_rank"].value = ranks.pop() if len(ranks) == 1 else state.rank


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


def _knob_controls(state: AllocationState, most_rank: int, most: int) -> dict[str, ipywidgets.Widget]:
    """Controls named after the field of the state that each of them sets."""
    wide: dict[str, Any] = {"layout": {"width": "390px"}, "style": {"description_width": "90px"}}
    return {
        "rank": ipywidgets.IntSlider(
            value=state.rank, min=1, max=max(most_rank, state.rank), description="Rank", **wide,
            tooltip="Nominal rank: the budget is this many ranks a module",
        ),
        "temperature": ipywidgets.FloatSlider(
            value=state.temperature, min=0, max=1, step=0.05, description="Temperature", **wide,
            tooltip="1: in proportion to the scores; 0: uniform",
        ),
        "budget": choice(
            "Budget", ("ranks", "parameters"), state.budget,
            ("As many ranks as the uniform allocation", "No more trainable parameters than the uniform allocation"),
        ),
        "scaling": choice(
            "Scaling", ("nominal", "allocated"), state.scaling,
            ("alpha divided by the nominal rank", "alpha divided by the module's own rank"),
        ),
        "min_rank": _limit("Floor", state.min_rank, 1, most, "Least rank of a module"),
        "max_rank": _limit("Ceiling", state.max_rank, most, most, "Most rank of a module"),
    }  # fmt: skip


def _limit(description: str, limit: Limit, default: int, most: int, tooltip: str) -> ipywidgets.BoundedIntText:
    """A number for all modules; out of use where each module has a limit of its own."""
    value = limit if isinstance(limit, int) else default
    return _number(description, value, most, tooltip, disabled=isinstance(limit, Mapping))


def _number(description: str, value: int, most: int, tooltip: str, **more: Any) -> ipywidgets.BoundedIntText:
    return ipywidgets.BoundedIntText(
        value=value, min=1, max=most, description=description, tooltip=tooltip,
        style={"description_width": "initial"}, layout={"width": "120px"}, **more,
    )  # fmt: skip


def _hand_controls(sensitivity: Sensitivity, most: int) -> dict[str, ipywidgets.Widget]:
    layers = sorted(set(sensitivity.layers.values()))
    projections = list(dict.fromkeys(sensitivity.projections.values()))
    look = {"style": {"description_width": "initial"}}
    return {
        "layer": ipywidgets.Dropdown(
            options=[("all", None), *((str(layer), layer) for layer in layers)], value=layers[0],
            description="Layer", layout={"width": "110px"}, **look,
        ),
        "projection": ipywidgets.Dropdown(
            options=[("all", None), *((p, p) for p in projections)], value=projections[0],
            description="Projection", layout={"width": "210px"}, **look,
        ),
        "way": choice("Rank", WAYS, SCORE, MEANINGS),
        "set_rank": _number("to", 1, most, "Rank of the selected modules, for edit and pin"),
    }  # fmt: skip


def _buttons(**actions: Any) -> dict[str, ipywidgets.Button]:
    """Buttons named after what they do."""
    words = {
        "keep": ("Keep this allocation", "Count changes from here on"),
        "start_over": ("Start over", "Take back all changes"),
    }
    made = {}
    for name, action in actions.items():
        description, tooltip = words[name]
        made[name] = ipywidgets.Button(description=description, tooltip=tooltip)
        made[name].on_click(lambda _, action=action: action())
    return made


def costs(allocation: Allocation) -> str:
    """Table of what the allocation costs, next to uniform LoRA at the same nominal rank."""
    ours, lora = allocation.footprint(), allocation.lora
    rows = [
        ("trainable parameters", "trainable_parameters", "{:,}".format),
        ("adapter, float32", "adapter_bytes", size_text),
        ("AdamW states, float32", "optimiser_bytes", size_text),
    ]
    heads = ["", "this allocation", f"uniform LoRA, rank {allocation.rank}", "ratio"]
    pairs = [(what, getattr(ours, key), getattr(lora, key), write) for what, key, write in rows]
    return table(heads, [[what, write(a), write(b), style.percent(a / b)] for what, a, b, write in pairs])


def changed(allocation: Allocation, kept: Allocation) -> str:
    """What is different from the kept allocation, in a sentence or two of HTML."""
    words = html.escape(changes_in_words(allocation, kept))
    return f"<p style='margin: 6px 0'>Since the kept allocation (rank {kept.rank}): {words}.</p>"


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
        New ``pinned``, ``edits`` and ``exclude_modules``.
    """
    pins = {name: r for name, r in pinned.items() if name not in names}
    hand = {name: r for name, r in edits.items() if name not in names}
    kept = [name for name in out if name not in names]
    ranks = dict.fromkeys(names, rank)
    return {
        "pinned": pins | ranks if way == PIN else pins,
        "edits": hand | ranks if way == EDIT else hand,
        "exclude_modules": (*kept, *names) if way == EXCLUDE else tuple(kept),
    }


def way_of(name: str, pinned: Collection[str], edits: Collection[str], out: Collection[str]) -> str:
    """How a module is treated; an edit goes before a pin, as in the allocation."""
    return EXCLUDE if name in out else EDIT if name in edits else PIN if name in pinned else SCORE


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
    left, parts = dict(ranks), []
    for projection in dict.fromkeys(role for name, role in sensitivity.projections.items() if name in ranks):
        members = selected(sensitivity, None, projection)
        values = {ranks.get(name) for name in members}
        if len(members) > 1 and len(values) == 1 and None not in values:
            parts.append(f"{{n: {values.pop()} for n, p in {source}.projections.items() if p == {projection!r}}}")
            left = {name: rank for name, rank in left.items() if name not in members}
    return " | ".join(parts + ([repr(left)] if left or not parts else []))


class RankPicture:
    """Artists on given axes that `update` brings up to an allocation, without making new ones.

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
        self._colours: tuple[str, ...] = ()
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

    @property
    def moving(self) -> list[Artist]:
        """What `update` changes, the hindmost first."""
        bars = [self.layer_bars, self.projection_bars]
        return [*self.cells.artists, *bars, *self.uniform, self.marks, *self.headline.artists]

    @property
    def key(self) -> Hashable:
        """What the rest of the picture depends on."""
        return self.above.get_ylim(), self.beside.get_xlim(), self._colours

    def update(self, allocation: Allocation, other: Allocation | None = None) -> None:
        """Show an allocation; with another one, its change since that.

        Parameters
        ----------
        allocation : Allocation
            Of the sensitivity.
        other : Allocation, optional
            The allocation to compare with.
        """
        ranks = np.array([allocation.ranks.get(name, np.nan) for name in self.names])
        if other is None:
            self._label_colours("rank, × uniform", f"≤ 1/{FACTOR}", "1", f"≥ {FACTOR}")
            texts = ["" if np.isnan(rank) else f"{rank:.0f}" for rank in ranks]
            self.cells.update(ranks, texts, LogNorm(allocation.rank / FACTOR, allocation.rank * FACTOR))
        else:
            self._label_colours("change of rank", f"≤ −{allocation.rank}", "0", f"≥ +{allocation.rank}")
            change = np.array([allocation.ranks.get(name, 0) - other.ranks.get(name, 0) for name in self.names], float)
            texts = [f"{step:+.0f}".replace("-", "−") if step else "" for step in change]
            self.cells.update(change, texts, Normalize(-allocation.rank, allocation.rank))
        self._mark([name in allocation.edits or name in allocation.options.pinned for name in self.names])
        self._set_totals(np.nan_to_num(ranks) / allocation.rank)

    def _label_colours(self, *labels: str) -> None:
        """A title, and labels of both ends and the middle of the colour bar."""
        if labels != self._colours:
            self._colours = labels
            self.bar.set_title(labels[0], fontsize=8.5, pad=3, loc="center")
            self.bar.set_xticks([0, 0.5, 1], labels[1:])

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
        self.bar = corner.inset_axes((0.08, 0.4, 0.84, 0.18))
        self.bar.imshow(
            np.linspace(0, 1, 256)[None], cmap=style.DIVERGING, aspect="auto", extent=(0, 1, 0, 1), origin="upper"
        )
        self.bar.set_yticks([])
        self.bar.spines[:].set_visible(False)
        self.bar.tick_params(length=2, pad=1, labelsize=8)


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of the values of each group; 0 where a layer has no module."""
    return np.bincount(groups, values) / np.maximum(np.bincount(groups), 1)


def _round_up(value: float) -> float:
    """The next of 2, 4, 8 ...: axes that stay as they are while an allocation changes a little."""
    return 2.0 ** max(1, math.ceil(math.log2(1.02 * value)))
