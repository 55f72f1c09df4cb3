"""Knobs of an allocation: what may be asked for, each value checked where it enters."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, SupportsIndex, get_args

from tlora.utils.validation import positive_int

Scaling = Literal["nominal", "allocated"]
SCALINGS = get_args(Scaling)
Budget = Literal["ranks", "parameters"]
BUDGETS = get_args(Budget)

Shapes = Mapping[str, tuple[int, int]]
Limit = int | dict[str, int]


@dataclass(frozen=True)
class Knobs:
    """The arguments of `tlora.allocate`, checked one by one; see there for what each of them does."""

    rank: int
    alpha: int | float
    scaling: str = "nominal"
    budget: str = "ranks"
    ranks: bool = True
    scales: bool = True
    max_rank: Limit | None = None
    min_rank: Limit = 1
    pinned: dict[str, int] = field(default_factory=dict)
    exclude: list[str | int] = field(default_factory=list)
    temperature: int | float = 1.0
    projection_shares: dict[str, float] = field(default_factory=dict)

    def costs(self, shapes: Shapes) -> list[int]:
        """Price of one rank of each module: 1, or its ``d_out`` where the budget counts parameters."""
        return [1 if self.budget == "ranks" else d_out for d_out, _ in shapes.values()]

    def weights(self, scores: Sequence[float]) -> list[float]:
        """Scores with the temperature applied: what ranks and scales are in proportion to."""
        return [score**self.temperature for score in scores]

    def rank_weights(self, scores: Sequence[float]) -> list[float]:
        """What ranks are in proportion to: `weights`, or all the same where ``ranks`` is off."""
        return self.weights(scores) if self.ranks else [1.0] * len(scores)

    def alphas(self, scores: Sequence[float]) -> list[int | float]:
        """``alpha_i`` of each module: ``max(alpha, round(alpha M S_i / sum_j S_j))``, or ``alpha`` for all.

        ``round`` is Python's, halves to the even neighbour, as the authors round in Python; a score that was
        measured does not fall on a half.
        """
        if not self.scales:
            return [self.alpha] * len(scores)
        weights = self.weights(scores)
        total = math.fsum(weights)
        return [max(self.alpha, round(self.alpha * len(weights) * weight / total)) for weight in weights]

    @property
    def unit(self) -> str:
        """What the budget counts, in words."""
        return "ranks" if self.budget == "ranks" else "trainable parameters"


def whole_or_each(name: str, value: SupportsIndex | Mapping[str, SupportsIndex]) -> Limit:
    """One whole number for all modules, or one for each module that is named."""
    if isinstance(value, Mapping):
        return {module: positive_int(number, f"{name} of {module}") for module, number in value.items()}
    return positive_int(value, name)


def one_or_several(value: str | int | Iterable[str | int]) -> list[str | int]:
    """Names or numbers as a list in an order of its own, so that a set gives the same one every time."""
    if not isinstance(value, str | SupportsIndex | Iterable):
        raise TypeError(f"exclude={value!r}: pass module names, projections or indices of layers, or nothing")
    items = [value] if isinstance(value, str | SupportsIndex) else list(value)
    return sorted((item if isinstance(item, str) else operator.index(item) for item in items), key=str)
