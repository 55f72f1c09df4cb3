"""The rank limits that the options of an allocation leave to every module, and whether these can be met."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tlora.allocation.options import AllocationOptions
from tlora.models.targets import Target
from tlora.numerics.apportionment import apportion, apportion_captured, total_cost

T = TypeVar("T")


@dataclass(frozen=True)
class RankLimits:
    """The least and the most rank of each module, in model order, the cost of one rank, and the budget of all."""

    low: list[int]
    high: list[int]
    costs: list[int]
    budget: int

    def apportion(self, values: Sequence[T], rule: Callable[..., list[int]] = apportion) -> list[int]:
        """Ranks within the limits, in model order.

        ``rule`` shares the budget by the values: `apportion` by weights, `apportion_captured` by the energies of each
        module's directions.
        """
        return rule(values, self.budget, self.low, self.high, self.costs)

    def share_ranks(
        self, options: AllocationOptions, scores: Mapping[str, float], energies: Mapping[str, Sequence[float]]
    ) -> list[int]:
        """Ranks within the limits by the rule that ``options.by`` names, in the order of ``scores``."""
        if options.is_captured:
            return self.apportion([energies[name] for name in scores], apportion_captured)
        return self.apportion(options.rank_weights(list(scores.values())))

    def reasons(self, ranks: Sequence[int], ideal: Sequence[float], rule: str) -> list[str]:
        """What decided each rank: a ``"floor"`` above its ideal, a ``"ceiling"`` below it, or the ``rule``."""
        return [
            "ceiling" if rank == high < share else "floor" if rank == low > share else rule
            for rank, low, high, share in zip(ranks, self.low, self.high, ideal, strict=True)
        ]


def rank_limits(
    options: AllocationOptions,
    allocated: Sequence[str],
    targets: Mapping[str, Target],
    edits: Mapping[str, int],
    energies: Mapping[str, Sequence[float]],
) -> RankLimits:
    """The limits of the ``allocated`` modules among ``targets``, whose budget the excluded ones leave to them.

    ``edits`` are ranks set by hand: they replace ``pinned`` and ``min_rank`` of the same module. A module with
    ``energies`` gets no more rank than it has of them. Limits that cannot be met are refused with the nearest possible
    value.
    """
    limits, ranks_by_hand = _unchecked_limits(options, allocated, targets, edits, energies)
    _check_budget(options, list(allocated), limits, ranks_by_hand, bool(energies))
    return limits


def possible_ranks(
    options: AllocationOptions,
    allocated: Sequence[str],
    targets: Mapping[str, Target],
    edits: Mapping[str, int],
    energies: Mapping[str, Sequence[float]],
    names: Collection[str],
) -> range:
    """The ranks that ``names`` can be set to by hand, the same for all, on top of the ``edits`` of other modules.

    Each rank more costs the same, so the limits at rank 1 tell how far the budget reaches.
    """
    limits, _ = _unchecked_limits(options, allocated, targets, {**edits, **dict.fromkeys(names, 1)}, energies)
    need, room = total_cost(limits.low, limits.costs), total_cost(limits.high, limits.costs)
    price = sum(options.costs([targets[name] for name in names]))
    most = min(rank_ceiling(options, targets[name], energies.get(name)).rank for name in names)
    unspent = limits.budget - room - _remainder(limits)
    return range(max(1, 1 + -(-unspent // price)), min(most, 1 + (limits.budget - need) // price) + 1)


def _unchecked_limits(
    options: AllocationOptions,
    allocated: Sequence[str],
    targets: Mapping[str, Target],
    edits: Mapping[str, int],
    energies: Mapping[str, Sequence[float]],
) -> tuple[RankLimits, dict[str, int]]:
    """The limits, whether or not the budget can meet them, and the ranks set by hand."""
    for name, limit in (("max_rank", options.max_rank), ("min_rank", options.min_rank)):
        _check_names(name, limit if isinstance(limit, dict) else (), targets, "module")
    if options.rank_by_expert and all(target.experts == 1 for target in targets.values()):
        raise ValueError(
            "rank_by_expert=True has no effect without experts: leave it out, or calibrate with "
            'target_modules=["attention", "experts"]'
        )
    pins = {name: ("pinned", rank) for name, rank in options.pinned.items()}
    pins |= {name: ("edited", rank) for name, rank in edits.items()}
    for name, (what, _) in pins.items():
        _check_names(what, [name], targets, "module")
        if name not in allocated:
            raise ValueError(f"{name} is {what} and excluded at once: leave it out of one of the two")
    ceilings = [rank_ceiling(options, targets[name], energies.get(name)) for name in allocated]
    spans = [_span(options, name, ceiling, pins.get(name)) for name, ceiling in zip(allocated, ceilings, strict=True)]
    low, high = [span[0] for span in spans], [span[1] for span in spans]
    costs = options.costs([targets[name] for name in allocated])
    limits = RankLimits(low, high, costs, options.budget_total(targets))
    return limits, {name: rank for name, (_, rank) in pins.items()}


def rank_floor(options: AllocationOptions, name: str) -> int:
    """Least rank of a module that is not pinned."""
    return options.min_rank.get(name, 1) if isinstance(options.min_rank, dict) else options.min_rank


class Ceiling(NamedTuple):
    """Most rank of a module, pinned or not, and what sets it."""

    rank: int
    why: str


def rank_ceiling(options: AllocationOptions, target: Target, energies: Sequence[float] | None) -> Ceiling:
    """Most rank of a module: by the size of its matrix, ``max_rank``, and what is known of its directions."""
    ceilings = [Ceiling(min(target.d_out, target.d_in), f"its matrix of {target.d_out} x {target.d_in}")]
    limit = options.max_rank.get(target.name) if isinstance(options.max_rank, dict) else options.max_rank
    if limit is not None:
        ceilings.append(Ceiling(limit, "max_rank"))
    if energies is not None:
        ceilings.append(Ceiling(len(energies), "its basis in the subspaces"))
    return min(ceilings, key=lambda ceiling: ceiling.rank)


def _span(options: AllocationOptions, name: str, ceiling: Ceiling, pin: tuple[str, int] | None) -> tuple[int, int]:
    """Least and most rank of one module."""
    what, floor = ("min_rank", rank_floor(options, name)) if pin is None else pin
    if floor > ceiling.rank:
        raise ValueError(
            f"{what} asks for rank {floor} of {name}, which {ceiling.why} limits to {ceiling.rank}: at most "
            f"{ceiling.rank}"
        )
    return floor, (ceiling.rank if pin is None else floor)


def _remainder(limits: RankLimits) -> int:
    """The most of the budget that may stay unspent: less than the most expensive rank costs."""
    return max(limits.costs) - 1


def _check_budget(
    options: AllocationOptions,
    names: list[str],
    limits: RankLimits,
    pins: dict[str, int],
    has_energies: bool,
) -> None:
    """Refuse limits that need more than the budget or have no room for it, with the nearest possible values."""
    total = limits.budget
    need, room = total_cost(limits.low, limits.costs), total_cost(limits.high, limits.costs)
    cost, unit = total // options.rank, options.unit
    remainder = _remainder(limits)
    if need > total:
        ways = _ways_to_spend_less(options, total, dict(zip(names, limits.costs, strict=True)), pins, need - total)
        rank = -(-need // cost)
        if rank * cost - room <= remainder:
            ways.insert(0, f"a rank of {rank} or more")
        raise ValueError(
            f"min_rank and pinned ranks need {need:,} {unit} at least, rank {options.rank} makes {total:,}: "
            f"take {', or '.join(ways)}"
        )
    if total - room > remainder:
        rank = room // cost
        ways = [f"take a rank of {rank} or less"] if rank * cost >= max(need, 1) else []
        if not ways and options.exclude_modules:
            ways.append("exclude fewer modules")
        if options.max_rank is not None:
            ways.append("raise max_rank")
        if has_energies:
            ways.append("compute subspaces of a larger max_rank")
        if pins:
            ways.append(f"raise pinned ranks by {total - room:,} {unit} in all")
        ways = ways or [f"take a rank of {rank} or less, and lower min_rank to it"]
        limiting = ["max_rank"] * (options.max_rank is not None) + ["pinned ranks"] * bool(pins)
        limiting.append("the directions of the subspaces" if has_energies else "the sizes of the matrices")
        raise ValueError(
            f"{' and '.join(limiting)} have room for {room:,} {unit}, rank {options.rank} makes {total:,}: "
            f"{', or '.join(ways)}"
        )


def _ways_to_spend_less(
    options: AllocationOptions, total: int, costs: dict[str, int], pins: dict[str, int], excess: int
) -> list[str]:
    """Changes other than a higher rank that bring floors and pins within the budget."""
    unpinned = sum(costs.values()) - sum(costs[name] for name in pins)
    floor = (total - sum(rank * costs[name] for name, rank in pins.items())) // unpinned if unpinned else 0
    ways = []
    if isinstance(options.min_rank, int) and 1 <= floor < options.min_rank:
        ways.append(f"a min_rank of {floor} or less")
    for name, pin in reversed(pins.items()):
        if (rank := pin - -(-excess // costs[name])) >= 1:
            return [*ways, f"a rank of {rank} or less for {name}"]
    return ways or [f"min_rank or pinned ranks lower by {excess:,} {options.unit} in all"]


def excluded_modules(exclude_modules: Collection[str | int], targets: Mapping[str, Target]) -> set[str]:
    """Full names of the modules meant by names, projections or indices of layers."""
    excluded: set[str] = set()
    layers = {target.layer for target in targets.values()}
    for item in exclude_modules:
        if isinstance(item, str):
            projections = [target.projection for target in targets.values()]
            _check_names("exclude_modules", [item], [*targets, *projections], "module or projection")
            excluded |= {name for name, target in targets.items() if item in (name, target.projection)}
        elif item in layers:
            excluded |= {name for name, target in targets.items() if target.layer == item}
        else:
            raise KeyError(f"exclude_modules names layer {item}, the layers here are {min(layers)} to {max(layers)}")
    if len(excluded) == len(targets):
        raise ValueError(
            f"exclude_modules leaves none of the {len(targets)} modules: keep at least one, such as {list(targets)[-1]}"
        )
    return excluded


def _check_names(argument: str, names: Iterable[str], choices: Iterable[str], what: str) -> None:
    """Refuse names that are not among the choices, with the closest one that is."""
    pool = dict.fromkeys(choices)
    for name in names:
        if name not in pool:
            close = difflib.get_close_matches(str(name), pool, n=1) or list(pool)
            raise KeyError(f"{argument} names {name!r}, which is not a {what} here; the closest is {close[0]!r}")
