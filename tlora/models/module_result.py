"""A result about the target modules of a model: the base of most results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from torch import Tensor

from tlora.models.targets import Target
from tlora.results import Meta, Result


@dataclass(frozen=True, repr=False, eq=False)
class ModuleResult(Result):
    """A result that says something of each target module of a model.

    Its fields are tensors, dictionaries of tensors by full module name, and values that JSON can hold; a subclass with
    others says how they are saved.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    """

    targets: dict[str, Target]

    @property
    def names(self) -> list[str]:
        """Full module names, in model order."""
        return list(self.targets)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(d_out, d_in)`` of each module."""
        return {name: (target.d_out, target.d_in) for name, target in self.targets.items()}

    @property
    def layers(self) -> dict[str, int]:
        """Index of the block that each module is in."""
        return {name: target.layer for name, target in self.targets.items()}

    @property
    def projections(self) -> dict[str, str]:
        """What each module is within its block, e.g. ``"q_proj"``."""
        return {name: target.projection for name, target in self.targets.items()}

    def _places(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The first columns of a table with one row a module: all modules, or these."""
        targets = [self.targets[name] for name in (self.targets if names is None else names)]
        return {
            "module": [target.name for target in targets],
            "layer": [target.layer for target in targets],
            "projection": [target.projection for target in targets],
        }

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"targets": packed_targets(self.targets)}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
            elif isinstance(value, dict) and value and all(isinstance(one, Tensor) for one in value.values()):
                tensors |= {f"{field.name}.{name}": one for name, one in value.items()}
            elif field.name not in ("targets", "meta"):
                values[field.name] = value
        return tensors, values

    @classmethod
    def _unpack(cls, tensors: dict[str, Tensor], values: dict[str, Any], meta: Meta) -> Self:
        targets = unpacked_targets(values["targets"])
        names = dict.fromkeys(key.partition(".")[0] for key in tensors)
        parts: dict[str, Any] = {
            name: tensors[name] if name in tensors else {module: tensors[f"{name}.{module}"] for module in targets}
            for name in names
        }
        return cls(**values | parts | {"targets": targets, "meta": meta})


def packed_targets(targets: dict[str, Target]) -> list[dict[str, Any]]:
    """What each module is, in model order, as values of JSON."""
    return [asdict(target) for target in targets.values()]


def unpacked_targets(packed: list[dict[str, Any]]) -> dict[str, Target]:
    """The targets that `packed_targets` made these values of."""
    return {values["name"]: Target(**values) for values in packed}
