"""A result about the target modules of a model: the base of most results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from tlora.models.targets import Target
from tlora.results import Result


@dataclass(frozen=True, repr=False, eq=False)
class ModuleResult(Result):
    """A result with values for each target module of a model.

    Attributes
    ----------
    targets : dict of Target
        The modules, by full name in model order.
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
        """Index of the block of each module."""
        return {name: target.layer for name, target in self.targets.items()}

    @property
    def projections(self) -> dict[str, str]:
        """Role of each module in its block, e.g. ``"q_proj"``."""
        return {name: target.projection for name, target in self.targets.items()}


PLACE_COLUMNS = {"module": "full module name", "layer": "index of the block", "projection": "role within the block"}
"""The first columns of a table with one row for each module."""


def module_frame(targets: Iterable[Target]) -> pd.DataFrame:
    """The `PLACE_COLUMNS` of a table."""
    rows = [(target.name, target.layer, target.projection) for target in targets]
    return pd.DataFrame(rows, columns=list(PLACE_COLUMNS))
