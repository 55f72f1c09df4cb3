"""The options of an allocation: the arguments of `allocate` as plain values within their ranges."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, SupportsIndex, get_args

from tlora.calibration.sensitivity import SCORES
from tlora.models.targets import Target
from tlora.utils.defaults import BUDGET, RANKS_BY, SCALING, Budget, RanksBy, Scaling
from tlora.utils.validation import require_choice, require_fraction, require_positive, require_positive_int

Limit = int | dict[str, int]

CHOICES: dict[str, Sequence[str]] = {
    "scaling": get_args(Scaling), "budget": get_args(Budget), "score": SCORES, "by": get_args(RanksBy),
}  # fmt: skip
"""Values of the options that are one of a few words."""


@dataclass(frozen=True)
class AllocationOptions:
    """The arguments of `tlora.allocate` with their defaults; see there for what each of them does.

    Takes numbers and collections of any type, as `allocate` does, and holds plain ones. ``alpha=None`` stands for the
    rank; the options of an `Allocation` hold the number.

    Raises
    ------
    TypeError, ValueError
        If a value is out of range; the message names the option.
    """

    rank: int
    alpha: int | float | None = None
    scaling: str = SCALING
    budget: str = BUDGET
    adapt_ranks: bool = True
    adapt_scales: bool = True
    max_rank: Limit | None = None
    min_rank: Limit = 1
    pinned: dict[str, int] = field(default_factory=dict)
    exclude_modules: Collection[str | int] = field(default_factory=list)
    temperature: int | float = 1.0
    score: str = "mean"
    by: RanksBy = RANKS_BY
    rank_by_expert: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            require_choice(getattr(self, name), name, choices)
        values = {
            "rank": require_positive_int(self.rank, "rank"),
            "alpha": None if self.alpha is None else require_positive(self.alpha, "alpha"),
            "max_rank": None if self.max_rank is None else _parse_limit("max_rank", self.max_rank),
            "min_rank": _parse_limit("min_rank", self.min_rank, least=0),
            "pinned": {n: require_positive_int(r, f"pinned rank of {n}") for n, r in (self.pinned or {}).items()},
            "exclude_modules": _parse_modules(self.exclude_modules),
            "temperature": require_fraction(self.temperature, "temperature"),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `tlora.allocate` is called with for these options: the rank, and what is not the default."""
        defaults = asdict(AllocationOptions(self.rank))
        return {name: value for name, value in asdict(self).items() if name == "rank" or value != defaults[name]}

    @property
    def nominal_alpha(self) -> int | float:
        """Nominal alpha: that of the options, or the rank."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def unit(self) -> str:
        """What the budget counts, in words."""
        return "ranks" if self.budget == "ranks" else "trainable parameters"

    @property
    def is_captured(self) -> bool:
        """Whether ranks follow the captured energy."""
        return self.adapt_ranks and self.by == "captured"

    def costs(self, targets: Iterable[Target]) -> list[int]:
        """Cost of one rank of each module: 1, or its ``d_out`` if the budget counts parameters; of all its experts."""
        return [target.experts * (1 if self.budget == "ranks" else target.d_out) for target in targets]

    def budget_total(self, targets: Mapping[str, Target]) -> int:
        """What the uniform allocation costs: the nominal rank times the cost of one rank of every module."""
        return self.rank * sum(self.costs(targets.values()))

    def rank_weights(self, scores: Sequence[float]) -> list[float]:
        """The numbers that ranks are in proportion to: scores to the temperature, or equal without ``adapt_ranks``."""
        return [score**self.temperature if self.adapt_ranks else 1.0 for score in scores]

    def alphas(self, scores: Sequence[float]) -> list[int | float]:
        """``alpha_i`` of each module: ``max(alpha, round(alpha M S_i / sum_j S_j))``, or ``alpha`` for all.

        ``round`` is Python's (half to even), as in the authors' code.
        """
        alpha = self.nominal_alpha
        if not self.adapt_scales:
            return [alpha] * len(scores)
        weights = [score**self.temperature for score in scores]
        total = math.fsum(weights)
        return [max(alpha, round(alpha * len(weights) * weight / total)) for weight in weights]


def change_options(options: AllocationOptions, changes: Mapping[str, Any]) -> AllocationOptions:
    """Return the options with other values of some; a TypeError names one that `allocate` does not have."""
    names = [each.name for each in fields(options)]
    for name in changes.keys() - set(names):
        raise TypeError(f"allocate() has no option {name!r}: it has {', '.join(names)}")
    return replace(options, **changes)


def _parse_limit(name: str, value: SupportsIndex | Mapping[str, SupportsIndex], least: int = 1) -> Limit:
    if isinstance(value, Mapping):
        return {module: require_positive_int(number, f"{name} of {module}", least) for module, number in value.items()}
    return require_positive_int(value, name, least)


def _parse_modules(value: str | int | Collection[str | int]) -> list[str | int]:
    """Names and layers as a list whose order does not depend on a set's."""
    items = list(value) if isinstance(value, Collection) and not isinstance(value, str) else [value]
    return sorted((item if isinstance(item, str) else operator.index(item) for item in items), key=str)
