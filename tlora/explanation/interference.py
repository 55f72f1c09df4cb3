"""Interference: how much each of two adapters changes what the other does on its own task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.results import Meta, Result


@dataclass(frozen=True, repr=False, eq=False)
class Interference(Result):
    """Two adapters of one base compared module by module; from `tlora.interference`.

    Attributes
    ----------
    labels : tuple of str
        What the two adapters are called.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module of either adapter, by full name.
    ranks : dict of tuple of int
        Rank of each module in the first and in the second adapter; 0 if it does not have the module.
    grams : dict of (2, 2, 2) float64 tensor
        ``tr(dW_i M_t dW_j^T)`` by task ``t`` and adapters ``i``, ``j``: the inner products of what the two adapters add
        to the module's outputs, a sum over the tokens of a sample of task ``t``, a mean over samples. ``M = I`` without
        calibrations.
    reads, writes : dict of float
        Overlap of the input directions that the two updates read and of the output directions that they write: mean
        squared cosine of the principal angles. NaN for a module that one of them does not change.
    same_a : dict of bool
        Whether both have the same ``A``, or the one the first rows of the other's.
    on_tasks : bool
        Whether the outputs on the two tasks were compared, or, without calibrations, the weights.
    meta : Meta
        The base model and the tasks.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, equation 4, for the overlaps.

    Examples
    --------
    >>> found = tlora.interference("adapter", "other", (calibration, calibration))
    >>> found
    Interference(adapter and other, 14 modules of ...)
    >>> on_first, on_second = found.overall
    >>> found.to_frame()[["module", "on_first", "on_second", "reads", "writes"]].shape
    (14, 5)
    """

    labels: tuple[str, str]
    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, tuple[int, int]]
    grams: dict[str, Float[Tensor, "tasks adapters adapters"]]
    reads: dict[str, float]
    writes: dict[str, float]
    same_a: dict[str, bool]
    on_tasks: bool
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "rank_first": "rank in the first adapter, 0 if it does not have the module",
        "rank_second": "rank in the second adapter",
        "on_first": "squared change of the first task's outputs by the second adapter, divided by that by the first",
        "on_second": "the same on the second task, by the first adapter, divided by that by the second",
        "cosine_first": "cosine between what both add to the outputs on the first task",
        "cosine_second": "the same on the second task",
        "reads": "overlap of the input directions that both updates read",
        "reads_random": "expected overlap of two random subspaces of these ranks",
        "writes": "overlap of the output directions that both updates write",
        "writes_random": "expected overlap of two random subspaces of these ranks",
        "same_a": "whether both have the same A, or the one the first rows of the other's",
    }

    @property
    def names(self) -> list[str]:
        """Full names of the modules of either adapter."""
        return list(self.shapes)

    @property
    def overall(self) -> tuple[float, float]:
        """``on_first`` and ``on_second`` of all modules together: sums over modules, divided."""
        return self.disturbance(1.0, 1.0)

    def disturbance(self, first_weight: float, second_weight: float) -> tuple[float, float]:
        """Predict how far a weighted sum of both adapters is from each adapter alone, on its own task.

        Parameters
        ----------
        first_weight, second_weight : float
            Weights of the two adapters in the sum.

        Returns
        -------
        tuple of float
            For the first and for the second task: ``sum ||X (w_1 dW_1 + w_2 dW_2 - dW_t)^T||^2 / sum ||X dW_t^T||^2``
            over modules. 0 for the adapter itself, 1 for the base. Each module counts on its own, on the inputs that
            the base gives it.
        """
        total = torch.stack(list(self.grams.values())).sum(0)
        weights, own = torch.tensor([first_weight, second_weight], dtype=torch.float64), torch.eye(2).double()
        away = weights - own
        values = [float(_ratio(a @ gram @ a, gram[t, t])) for t, (a, gram) in enumerate(zip(away, total, strict=True))]
        return values[0], values[1]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        rows = []
        for name, gram in self.grams.items():
            (one, other), (d_out, d_in) = self.ranks[name], self.shapes[name]
            norms = gram.diagonal(dim1=1, dim2=2).prod(1).sqrt()
            rows.append(
                {
                    "module": name,
                    "rank_first": one,
                    "rank_second": other,
                    "on_first": float(_ratio(gram[0, 1, 1], gram[0, 0, 0])),
                    "on_second": float(_ratio(gram[1, 0, 0], gram[1, 1, 1])),
                    "cosine_first": float(_ratio(gram[0, 0, 1], norms[0])),
                    "cosine_second": float(_ratio(gram[1, 0, 1], norms[1])),
                    "reads": self.reads[name],
                    "reads_random": _by_chance(one, other, d_in),
                    "writes": self.writes[name],
                    "writes_random": _by_chance(one, other, d_out),
                    "same_a": self.same_a[name],
                }
            )
        return pd.DataFrame(rows)

    def _summary(self) -> str:
        first, second = self.labels
        on_first, on_second = self.overall
        what = "outputs on their tasks" if self.on_tasks else "weights"
        return (
            f"{first} and {second}, {len(self.names)} modules of {self.meta.model}, by the {what}: {second} changes "
            f"{on_first:.2g} times what {first} does, {first} {on_second:.2g} times what {second} does"
        )


def _ratio(part: Any, whole: Any) -> Any:
    """Return NaN for anything divided by nothing."""
    return part / whole if whole > 0 else math.nan


def _by_chance(one: int, other: int, d: int) -> float:
    return min(max(one, other) / d, 1.0) if one and other else math.nan
