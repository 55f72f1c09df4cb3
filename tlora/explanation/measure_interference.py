"""Measure how much two adapters of one base disturb each other, from their weights and what calibrations hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.adapter import LoraAdapter, difference_of_bases, input_moments
from tlora.adapters.update import LoraUpdate, have_same_a, inner_products
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.explanation.interference import Interference
from tlora.results import Meta
from tlora.utils.validation import check_type

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
        (DoRA, PiSSA that was not converted to LoRA, ...), or a calibration is of another model or lacks a module.

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
    moments: list[Callable[[str], Covariance] | None] = [None, None]
    tasks = []
    for task, calibration in enumerate(calibrations or ()):
        check_type(calibration, Calibration, "one calibration for each task, (first, second)")
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
