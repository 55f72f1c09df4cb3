"""Limits of an allocation: what its options leave to every module, and whether they can be met at all."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex, get_args

from tlora.models.targets import Target
from tlora.numerics.apportionment import apportion, total_cost
from tlora.utils.defaults import Budget, Scaling
from tlora.utils.validation import positive_int

SCALINGS = get_args(Scaling)
BUDGETS = get_args(Budget)

Limit = int | dict[str, int]


@dataclass(frozen=True)
class Limits:
    """What each module may get, in model order, and the budgets of the groups that share one.

    Attributes
    ----------
    low, high : list of int
        Least and most rank of each module; the same number for a pinned one.
    costs : list of int
        Price of one rank of each module.
    groups : list of (list of int, int)
        Positions of the modules of a group, and its budget. One group, unless projections have shares.
    """

    low: list[int]
    high: list[int]
    costs: list[int]
    groups: list[tuple[list[int], int]]

    def solve(self, weights: Sequence[float]) -> list[int]:
        """Ranks in proportion to ``weights`` within the limits, in model order; see `apportion`."""
        ranks = [0] * len(weights)
        for members, budget in self.groups:
            low, high, costs = ([column[i] for i in members] for column in (self.low, self.high, self.costs))
            shared = apportion([weights[i] for i in members], budget, low, high, costs)
            for i, rank in zip(members, shared, strict=True):
                ranks[i] = rank
        return ranks

    def reasons(self, ranks: Sequence[int], ideal: Sequence[float]) -> list[str]:
        """What set each rank: a ``"floor"`` above its ideal, a ``"ceiling"`` below it, or its ``"score"``."""
        return [
            "ceiling" if rank == high < share else "floor" if rank == low > share else "score"
            for rank, low, high, share in zip(ranks, self.low, self.high, ideal, strict=True)
        ]


def limits(
    options: AllocationOptions, allocated: Sequence[str], targets: Mapping[str, Target], edits: Mapping[str, int]
) -> Limits:
    """Least and most rank of every module in the allocation, and what there is to spend.

    Parameters
    ----------
    options : AllocationOptions
        What was asked for.
    allocated : sequence of str
        Modules in the allocation.
    targets : mapping of Target
        These, and the modules left out, whose part of the budget they get.
    edits : mapping of int
        Ranks set by hand; they replace what ``pinned`` and ``min_rank`` say of the same module.

    Raises
    ------
    KeyError
        If an option names an unknown module or projection.
    ValueError
        If an option cannot be met; the message gives the nearest possible value.
    """
    for name, value in {"max_rank": options.max_rank, "min_rank": options.min_rank}.items():
        _known(name, value if isinstance(value, dict) else (), targets, "module")
    pins = {name: ("pinned", rank) for name, rank in options.pinned.items()}
    pins |= {name: ("edited", rank) for name, rank in edits.items()}
    for name, (what, _) in pins.items():
        _known(what, [name], targets, "module")
        if name not in allocated:
            raise ValueError(f"{name} is {what} and excluded at once: leave it out of one of the two")
    pairs = [_span_of(options, targets[name], pins.get(name)) for name in allocated]
    low, high = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    costs = options.costs([targets[name] for name in allocated])
    columns = low, high, costs
    total = budget_total(options, targets)
    parts = _parts(options, [targets[name].projection for name in allocated])
    set_by_hand = {name: rank for name, (_, rank) in pins.items()}
    _check_budget(options, total, list(allocated), columns, set_by_hand, [members for _, members in parts.values()])
    free = (
        [min(_floor(options, name), least) for name, least in zip(allocated, low, strict=True)],
        [_ceiling(options, targets[name]) for name in allocated],
        costs,
    )
    return Limits(*columns, _shared(total, parts, columns, free))


def budget_total(options: AllocationOptions, targets: Mapping[str, Target]) -> int:
    """What the uniform allocation costs: nominal rank times the price of one rank of every module."""
    return options.rank * sum(options.costs(targets.values()))


def _floor(options: AllocationOptions, name: str) -> int:
    """Least rank of a module that nobody pins."""
    return options.min_rank.get(name, 1) if isinstance(options.min_rank, dict) else options.min_rank


def _ceiling(options: AllocationOptions, target: Target) -> int:
    """Most rank of a module, pinned or not."""
    asked = options.max_rank.get(target.name) if isinstance(options.max_rank, dict) else options.max_rank
    full = min(target.d_out, target.d_in)
    return full if asked is None else min(full, asked)


def _span_of(options: AllocationOptions, target: Target, pin: tuple[str, int] | None) -> tuple[int, int]:
    """Least and most rank of one module."""
    ceiling = _ceiling(options, target)
    what, floor = ("min_rank", _floor(options, target.name)) if pin is None else pin
    if floor > ceiling:
        is_limited = ceiling < min(target.d_out, target.d_in)
        why = "max_rank" if is_limited else f"its matrix of {target.d_out} x {target.d_in}"
        raise ValueError(
            f"{what} asks for rank {floor} of {target.name}, which {why} limits to {ceiling}: at most {ceiling}"
        )
    return floor, (ceiling if pin is None else floor)


Columns = tuple[list[int], list[int], list[int]]
"""Least rank, most rank and price of every module."""


def _check_budget(
    options: AllocationOptions,
    total: int,
    names: list[str],
    columns: Columns,
    pins: dict[str, int],
    groups: list[list[int]],
) -> None:
    """Refuse limits between which the budget does not lie, with the values nearest to what was asked.

    What each group leaves as a rest, which does not pay for a rank of its dearest module, is not missed.
    """
    low, high, costs = columns
    rest = sum(max(costs[i] for i in members) - 1 for members in groups)
    need, room, price = total_cost(low, costs), total_cost(high, costs), total // options.rank
    if need > total:
        ways = _ways(options, total, names, columns, pins)
        rank = -(-need // price)
        if rank * price - room <= rest:
            ways.insert(0, f"a rank of {rank} or more")
        ways = ways or [f"a min_rank that takes {need - total:,} {options.unit} less in all"]
        raise ValueError(
            f"min_rank and pinned ranks need {need:,} {options.unit} at least, rank {options.rank} makes "
            f"{total:,}: take {', or '.join(ways)}"
        )
    if total - room > rest:
        rank = room // price
        ways = [f"take a rank of {rank} or less"] if rank * price >= max(need, 1) else []
        if not ways and options.exclude_modules:
            ways.append("exclude fewer modules")
        if options.max_rank is not None:
            ways.append("raise max_rank")
        if pins:
            ways.append(f"raise pinned ranks by {total - room:,} {options.unit} in all")
        ways = ways or [f"take a rank of {rank} or less, and lower min_rank to it"]
        raise ValueError(
            f"max_rank, pinned ranks and the sizes of the matrices have room for {room:,} {options.unit}, rank "
            f"{options.rank} makes {total:,}: {', or '.join(ways)}"
        )


def _ways(
    options: AllocationOptions, total: int, names: list[str], columns: Columns, pins: dict[str, int]
) -> list[str]:
    """What else than a higher rank would bring floors and pins within the budget."""
    low, _, costs = columns
    prices = dict(zip(names, costs, strict=True))
    over, taken = total_cost(low, costs) - total, sum(rank * prices[name] for name, rank in pins.items())
    free = sum(costs) - sum(prices[name] for name in pins)
    floor = (total - taken) // free if free else 0
    ways = []
    if isinstance(options.min_rank, int) and 1 <= floor < options.min_rank:
        ways.append(f"a min_rank of {floor} or less")
    for name, pin in reversed(pins.items()):
        if (rank := pin - -(-over // prices[name])) >= 1:
            return [*ways, f"a rank of {rank} or less for {name}"]
    return [*ways, f"pinned ranks lower by {over:,} {options.unit} in all"] if pins else ways


def _parts(options: AllocationOptions, projections: list[str]) -> dict[str, tuple[float, list[int]]]:
    """Share of the budget and positions of the modules: of each projection with a share, and of all others together."""
    shares = dict(options.projection_shares)
    _known("projection_shares", shares, projections, "projection of the allocation")
    others = [i for i, projection in enumerate(projections) if projection not in shares]
    groups = [[i for i, projection in enumerate(projections) if projection == share] for share in shares]
    given = math.fsum(shares.values())
    if others:
        shares["the other projections"] = max(0.0, 1 - given)
        groups.append(others)
    elif abs(given - 1) > 1e-9:
        raise ValueError(f"projection_shares of all projections sum to {given:.6g}: divide each by {given:.6g}")
    return {name: (share, group) for (name, share), group in zip(shares.items(), groups, strict=True)}


def _shared(
    total: int, parts: Mapping[str, tuple[float, list[int]]], columns: Columns, free: Columns
) -> list[tuple[list[int], int]]:
    """Groups of modules, each with its part of the budget.

    Parts are rounded as if nothing were pinned (``free``). Pins that fit in leave them as they are, and so does a rest
    that pays for no rank; what pins leave beyond that goes to the other groups.
    """
    shares, groups = zip(*parts.values(), strict=True)
    spans = _spans(total, parts, [share * total for share in shares], free)
    rounded = apportion(shares, total, [least for least, _, _ in spans], [most for _, most, _ in spans])
    spans = _spans(total, parts, rounded, columns)
    high = [most + price - 1 for _, most, price in spans]
    return list(zip(groups, apportion(rounded, total, [least for least, _, _ in spans], high), strict=True))


def _spans(
    total: int, parts: Mapping[str, tuple[float, list[int]]], budgets: Sequence[float], columns: Columns
) -> list[tuple[int, int, int]]:
    """Least and most that each group can spend, and the price of its dearest rank; refuses shares that do not fit.

    A group may need more than its part as far as others cannot spend theirs.
    """
    spans = []
    for _, members in parts.values():
        low, high, costs = ([column[i] for i in members] for column in columns)
        spans.append((total_cost(low, costs), total_cost(high, costs), max(costs)))
    left = sum(max(0, budget - most) for budget, (_, most, _) in zip(budgets, spans, strict=True))
    for (name, (share, _)), budget, (least, most, price) in zip(parts.items(), budgets, spans, strict=True):
        asked = sorted((share * total, budget))
        if asked[1] + left < least - 1e-6:
            bound = f"at least {math.ceil(1e4 * least / total) / 1e4:g}, which its floors and pinned ranks need"
        elif asked[0] - most >= price:
            bound = f"at most {math.floor(1e4 * most / total) / 1e4:g}, for which its matrices and limits have room"
        else:
            continue
        raise ValueError(f"projection_shares leave {share:.6g} of the budget for {name}: it must be {bound}")
    return spans


def excluded_names(exclude_modules: Sequence[str | int], targets: Mapping[str, Target]) -> set[str]:
    """Modules meant by ``exclude_modules``: full module names, projections, or indices of layers.

    Raises
    ------
    KeyError
        If an item means no module.
    ValueError
        If no module is left.
    """
    found: set[str] = set()
    layers = {target.layer for target in targets.values()}
    for item in exclude_modules:
        if isinstance(item, str):
            projections = [target.projection for target in targets.values()]
            _known("exclude_modules", [item], [*targets, *projections], "module or projection")
            found |= {name for name, target in targets.items() if item in (name, target.projection)}
        elif item in layers:
            found |= {name for name, target in targets.items() if target.layer == item}
        else:
            raise KeyError(f"exclude_modules names layer {item}, the layers here are {min(layers)} to {max(layers)}")
    if len(found) == len(targets):
        last = list(targets)[-1]
        raise ValueError(
            f"exclude_modules leaves none of the {len(targets)} modules: keep at least one, such as {last}"
        )
    return found


def _known(name: str, given: Iterable[str], choices: Iterable[str], what: str) -> None:
    """Refuse names that are not among the choices, with the closest one that is."""
    pool = dict.fromkeys(choices)
    for value in given:
        if value not in pool:
            close = difflib.get_close_matches(str(value), pool, n=1) or list(pool)
            raise KeyError(f"{name} names {value!r}, which is not a {what} here; the closest is {close[0]!r}")


@dataclass(frozen=True)
class AllocationOptions:
    """The arguments of `tlora.allocate`, checked one by one; see there for what each of them does."""

    rank: int
    alpha: int | float
    scaling: str = "nominal"
    budget: str = "ranks"
    adapt_ranks: bool = True
    adapt_scales: bool = True
    max_rank: Limit | None = None
    min_rank: Limit = 1
    pinned: dict[str, int] = field(default_factory=dict)
    exclude_modules: list[str | int] = field(default_factory=list)
    temperature: int | float = 1.0
    projection_shares: dict[str, float] = field(default_factory=dict)
    score: str = "mean"

    def costs(self, targets: Iterable[Target]) -> list[int]:
        """Price of one rank of each module: 1, or its ``d_out`` where the budget counts parameters."""
        return [1 if self.budget == "ranks" else target.d_out for target in targets]

    def weights(self, scores: Sequence[float]) -> list[float]:
        """Scores with the temperature applied: what ranks and scales are in proportion to."""
        return [score**self.temperature for score in scores]

    def rank_weights(self, scores: Sequence[float]) -> list[float]:
        """What ranks are in proportion to: `weights`, or all the same where ``adapt_ranks`` is off."""
        return self.weights(scores) if self.adapt_ranks else [1.0] * len(scores)

    def alphas(self, scores: Sequence[float]) -> list[int | float]:
        """``alpha_i`` of each module: ``max(alpha, round(alpha M S_i / sum_j S_j))``, or ``alpha`` for all.

        ``round`` is Python's, halves to the even neighbour, as the authors round in Python; a score that was
        measured does not fall on a half.
        """
        if not self.adapt_scales:
            return [self.alpha] * len(scores)
        weights = self.weights(scores)
        total = math.fsum(weights)
        return [max(self.alpha, round(self.alpha * len(weights) * weight / total)) for weight in weights]

    @property
    def unit(self) -> str:
        """What the budget counts, in words."""
        return "ranks" if self.budget == "ranks" else "trainable parameters"


def whole_or_each(name: str, value: SupportsIndex | Mapping[str, SupportsIndex], least: int = 1) -> Limit:
    """One whole number for all modules, or one for each module that is named; none below ``least``."""
    if isinstance(value, Mapping):
        return {module: positive_int(number, f"{name} of {module}", least) for module, number in value.items()}
    return positive_int(value, name, least)


def one_or_several(value: str | int | Iterable[str | int]) -> list[str | int]:
    """Names or numbers as a list in an order of its own, so that a set gives the same one every time."""
    items = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not all(isinstance(item, str | SupportsIndex) and not isinstance(item, bool) for item in items):
        raise TypeError(f"exclude_modules={value!r}: pass module names, projections or indices of layers, or nothing")
    return sorted((item if isinstance(item, str) else operator.index(item) for item in items), key=str)
