"""Measure how much two adapters of one base disturb each other, from their weights and what calibrations hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.factored import (
    FactoredAdapter,
    check_calibration,
    difference_of_bases,
    have_same_a,
    read_adapter,
    second_moments,
)
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
    one, other = (read_adapter(each, "interference") for each in (first, second))
    if why := difference_of_bases(one, other):
        raise ValueError(f"the two adapters are of different bases ({why}): compare adapters of one base")
    return compare_adapters(one, other, (_label(first, "first"), _label(second, "second")), calibrations)


def compare_adapters(
    one: FactoredAdapter,
    other: FactoredAdapter,
    labels: tuple[str, str],
    calibrations: tuple[Calibration, Calibration] | None = None,
) -> Interference:
    """Measure how much two adapters of one base disturb each other, from what was read of them."""
    moments: list[Callable[[str], Covariance] | None] = [None, None]
    tasks = []
    for at, each in enumerate(calibrations or ()):
        each = check_type(each, Calibration, "one calibration for each task, (first, second)")
        for adapter in (one, other):
            check_calibration(each, adapter, f"the {('first', 'second')[at]} calibration")
        moments[at] = second_moments(each)
        tasks.append(each.meta.task)
    order = dict.fromkeys([*one.shapes, *other.shapes])
    shapes = one.shapes | other.shapes
    grams, reads, writes, same_a = {}, {}, {}, {}
    for name in order:
        parts = [_scaled(adapter, name, shapes[name]) for adapter in (one, other)]
        grams[name] = torch.stack([_gram(name, parts, moment) for moment in moments])
        spaces = [_spaces(a, b) for a, b in parts]
        reads[name], writes[name] = (_overlap(spaces[0][side], spaces[1][side]) for side in (0, 1))
        same_a[name] = bool(len(parts[0][0]) and len(parts[1][0])) and have_same_a([a for a, _ in parts])
    return Interference(
        labels=labels,
        shapes={name: shapes[name] for name in order},
        ranks={name: (one.ranks.get(name, 0), other.ranks.get(name, 0)) for name in order},
        grams=grams,
        reads=reads,
        writes=writes,
        same_a=same_a,
        on_tasks=calibrations is not None,
        meta=Meta(model=one.base, task=" and ".join(tasks)),
    )


def _label(adapter: Adapter, otherwise: str) -> str:
    return otherwise if isinstance(adapter, PeftModel) else Path(adapter).name


def _scaled(adapter: FactoredAdapter, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return ``A`` and ``s B`` in float64; of rank 0 if the adapter does not have the module."""
    if name not in adapter.factors:
        return torch.zeros(0, shape[1]).double(), torch.zeros(shape[0], 0).double()
    a, b = adapter.factors[name]
    return a.double(), adapter.scalings[name] * b.double()


def _gram(
    name: str, parts: list[tuple[Tensor, Tensor]], moment: Callable[[str], Covariance] | None
) -> Float[Tensor, "2 2"]:
    """Return ``tr(dW_i M dW_j^T)`` of two updates, from products of the size of their ranks."""
    rows = [a if moment is None else (moment(name) @ a.T).T for a, _ in parts]
    # tr(B_i A_i M A_j^T B_j^T) is the sum of the entries of A_i M A_j^T times those of B_i^T B_j.
    entries = [[((m @ a.T) * (c.T @ b)).sum() for a, b in parts] for m, (_, c) in zip(rows, parts, strict=True)]
    return torch.stack([torch.stack(row) for row in entries])


def _spaces(a: Tensor, b: Tensor) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "k d_out"]]:
    """Return orthonormal rows that span what an update reads, and what it writes."""
    q, r = torch.linalg.qr(b)
    u, s, v = torch.linalg.svd(r @ a, full_matrices=False)
    used = s > _NOTHING * s.max() if len(s) else torch.zeros(0, dtype=torch.bool)
    return v[used], (q @ u[:, used]).T


def _overlap(one: Float[Tensor, "k d"], other: Float[Tensor, "m d"]) -> float:
    """Return the mean squared cosine of the principal angles of two subspaces; NaN if one of them is empty."""
    fewer = min(len(one), len(other))
    return float((one @ other.T).square().sum() / fewer) if fewer else float("nan")
