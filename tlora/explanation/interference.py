"""Measure how much two adapters of one base disturb each other, from their weights and what calibrations hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.adapter import LoraAdapter, difference_of_bases, input_moments
from tlora.adapters.peft_config import refuse_experts
from tlora.adapters.update import LoraUpdate, Moment, have_same_a, inner_products
from tlora.calibration.calibration import Calibration
from tlora.results import Meta, Result
from tlora.utils.validation import check_arguments, require_finite


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
        pair = require_finite(first_weight, "first_weight"), require_finite(second_weight, "second_weight")
        away = torch.tensor(pair, dtype=torch.float64) - torch.eye(2).double()
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


Adapter = str | os.PathLike[str] | PeftModel

_NOTHING = 1e-6
"""Share of the largest singular value of an update below which a direction is rounding."""


def interference(
    first: Adapter, second: Adapter, calibrations: tuple[Calibration, Calibration] | None = None
) -> Interference:
    """Measure how much two adapters disturb each other's tasks, module by module and without a forward pass.

    Parameters
    ----------
    first, second : path-like, str or peft.PeftModel
        LoRA adapters of one base: a folder; a name on the hub, ``owner/name`` or ``owner/name@revision``; or a model
        with one active adapter, which is only read.
    calibrations : tuple of Calibration, optional
        From `calibrate` on the base and samples of the first task, and of the second. Dense or sketched. Without them
        the weights are compared, as if all inputs were alike.

    Returns
    -------
    Interference

    Raises
    ------
    FileNotFoundError
        If there is no adapter.
    ValueError
        If the adapters are of different bases, one of them is damaged or computes something else than ``W + s B A``
        (DoRA, PiSSA that was not converted to LoRA, ...), or a calibration is of another model or lacks a module, or
        there are not two.

    Notes
    -----
    With ``M_1`` the uncentered second moment of a module's inputs on the first task, the second adapter changes its
    outputs there by ``tr(dW_2 M_1 dW_2^T)``, the first by ``tr(dW_1 M_1 dW_1^T)``; their ratio is ``on_first``. The
    inputs are those of the base: what an adapter in one layer does to the inputs of the next is left out. A sketched
    moment is a lower bound of the whole one, and the ratio is then approximate.

    Examples
    --------
    >>> found = tlora.interference("adapter", "other", (calibration, calibration))
    >>> found.overall == found.disturbance(1.0, 1.0)
    True
    >>> round(tlora.interference("adapter", adapted).overall[0], 4)
    1.0
    """
    check_arguments(interference, locals())
    pair = LoraAdapter.read(first, "interference"), LoraAdapter.read(second, "interference")
    if why := difference_of_bases(*pair):
        raise ValueError(f"the two adapters are of different bases ({why}): compare adapters of one base")
    return compare_adapters(*pair, (_label(first, "first"), _label(second, "second")), calibrations)


def compare_adapters(
    first: LoraAdapter,
    second: LoraAdapter,
    labels: tuple[str, str],
    calibrations: tuple[Calibration, Calibration] | None = None,
) -> Interference:
    """Measure how much two adapters of one base disturb each other, from what was read of them."""
    for adapter in (first, second):
        refuse_experts(adapter.parameters, "interference")
    moments: list[Callable[[str], Moment] | None] = [None, None]
    tasks = []
    for task, calibration in enumerate(calibrations or ()):
        moments[task] = input_moments(calibration, (first, second), f"the {('first', 'second')[task]} calibration")
        tasks.append(calibration.meta.task)
    shapes = first.shapes | second.shapes
    grams, reads, writes, same_a = {}, {}, {}, {}
    for name, shape in shapes.items():
        pair = [_folded(adapter, name, shape) for adapter in (first, second)]
        grams[name] = torch.stack([inner_products(pair, moment and moment(name)) for moment in moments])
        spaces = [_spaces(update) for update in pair]
        reads[name], writes[name] = (_overlap(spaces[0][side], spaces[1][side]) for side in (0, 1))
        same_a[name] = all(update.rank for update in pair) and have_same_a(pair)
    return Interference(
        labels=labels,
        shapes=shapes,
        ranks={name: (first.ranks.get(name, 0), second.ranks.get(name, 0)) for name in shapes},
        grams=grams,
        reads=reads,
        writes=writes,
        same_a=same_a,
        on_tasks=calibrations is not None,
        meta=Meta(model=first.base, task=" and ".join(tasks)),
    )


def _label(adapter: Adapter, otherwise: str) -> str:
    return otherwise if isinstance(adapter, PeftModel) else Path(adapter).name


def _folded(adapter: LoraAdapter, name: str, shape: tuple[int, int]) -> LoraUpdate:
    """Return the update of a module in float64 with a scaling of 1; of rank 0 if the adapter does not have it."""
    if name not in adapter.updates:
        return LoraUpdate(name, torch.zeros(0, shape[1]).double(), torch.zeros(shape[0], 0).double())
    return adapter.updates[name].to(torch.float64).fold()


def _spaces(update: LoraUpdate) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "k d_out"]]:
    """Return orthonormal rows that span what an update reads, and what it writes."""
    q, r = torch.linalg.qr(update.b)
    u, s, v = torch.linalg.svd(r @ update.a, full_matrices=False)
    used = s > _NOTHING * s.max() if len(s) else torch.zeros(0, dtype=torch.bool)
    return v[used], (q @ u[:, used]).T


def _overlap(one: Float[Tensor, "k d"], other: Float[Tensor, "m d"]) -> float:
    """Return the mean squared cosine of the principal angles of two subspaces; NaN if one of them is empty."""
    fewer = min(len(one), len(other))
    return float((one @ other.T).square().sum() / fewer) if fewer else float("nan")
