"""PastRace: a race of two allocations that has ended, as the workbench lists it and as a session keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlora.comparison.race_result import Race, interval_text
from tlora.utils.text import count_text
from viz import style


@dataclass(frozen=True)
class RacedArm:
    """What an arm of a race is: its line of Python, and its ranks in words and in the order of the map.

    A module without an adapter has rank 0 and scaling 0.
    """

    code: str
    headline: str
    parameters: int
    ranks: list[int]
    scalings: list[float]

    def is_same_adapter(self, other: RacedArm) -> bool:
        """Whether both have the same ranks and scalings, whatever line of Python made them.

        With the same ranks by module, ranks by expert differ in the parameters that PEFT holds.
        """
        return all(getattr(self, of) == getattr(other, of) for of in ("ranks", "scalings", "parameters"))

    @property
    def values(self) -> dict[str, Any]:
        """What the browser draws, as JSON values."""
        return {name: getattr(self, name) for name in ("code", "headline", "parameters", "ranks")}


@dataclass(frozen=True)
class PastRace:
    """The result of a race without its adapters, and its two arms."""

    result: Race
    arms: dict[str, RacedArm]

    def is_of(self, arms: Mapping[str, RacedArm]) -> bool:
        """Whether these arms were raced, under the same names."""
        return is_same_pair(self.arms, arms)

    def values(self, places: Sequence[str]) -> dict[str, Any]:
        """What the browser draws, as JSON values; ``places`` are the modules in words."""
        arms = {name: arm.values | self._outcome(name) for name, arm in self.arms.items()}
        for pair in self.result.differences().itertuples():
            arms[pair.other]["interval"] = interval_text(pair.low, pair.high).replace("-", style.MINUS)
        return {
            "said": self.result.headline,
            "basis": f"{self.result.basis}. {describe_rates(self.result)}",
            "leader": self.result.leader,
            "arms": arms,
            "difference": describe_difference(self.arms, places),
        }

    def _outcome(self, name: str) -> dict[str, Any]:
        """Held-out losses of an arm, means over the seeds, and what it cost."""
        rows = self.result.to_frame().query("arm == @name").groupby("step")[["loss", "seconds"]].mean()
        return {
            "held": list(rows["loss"].items()),
            "loss": float(rows["loss"].iloc[-1]),
            "seconds": float(rows["seconds"].iloc[-1]),
            "rate": self.result.learning_rates[name],
            "planned": self.result.steps,
            "step": int(rows.index[-1]),
        }


def is_same_pair(arms: Mapping[str, RacedArm], others: Mapping[str, RacedArm]) -> bool:
    """Whether both have the same adapters under the same names."""
    return arms.keys() == others.keys() and all(arms[name].is_same_adapter(others[name]) for name in arms)


def describe_rates(race: Race) -> str:
    """The learning rates of a race, and what they leave open."""
    rates = set(race.learning_rates.values())
    if len(rates) > 1:
        return f"Learning rates: {', '.join(f'{name} {rate:g}' for name, rate in race.learning_rates.items())}."
    return f"Both at learning rate {rates.pop():g}: larger scalings learn faster at one rate, so try another too."


def describe_difference(arms: Mapping[str, RacedArm], places: Sequence[str]) -> str:
    """What the second of two arms has more and fewer ranks of than the first; empty if there are no two arms."""
    if len(arms) < 2:
        return ""
    (first, before), (second, after) = arms.items()
    changes = {place: b - a for place, a, b in zip(places, before.ranks, after.ranks, strict=True) if a != b}
    if not changes:
        what = "other ranks by expert" if before.scalings == after.scalings else "other scalings"
        return f"{first} and {second} have the same ranks and {what}."
    more = {place: change for place, change in changes.items() if change > 0}
    fewer = {place: -change for place, change in changes.items() if change < 0}
    parts = []
    if more:
        most = max(more, key=more.__getitem__)
        parts.append(f"adds {_count(more)}, most to {most} (+{more[most]})")
    if fewer:
        most = max(fewer, key=fewer.__getitem__)
        parts.append(f"removes {_count(fewer)}, most from {most} ({style.MINUS}{fewer[most]})")
    return f"Compared with {first}, {second} {', and '.join(parts)}."


def _count(changes: Mapping[str, int]) -> str:
    """``"34 ranks in 15 modules"``."""
    return f"{count_text(sum(changes.values()), 'rank')} in {count_text(len(changes), 'module')}"
