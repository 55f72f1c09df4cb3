"""Checks of values where they enter, shared by the rooms of the walk."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from tlora.targets import shape
from tlora.weights import weight


def positive_int(value: Any, name: str) -> int:
    """The value as an int.

    Raises
    ------
    ValueError
        If it is not a whole number of at least 1; the message calls it ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: use a whole number of at least 1")
    return int(value)


def fingerprint(matrix: Tensor) -> Tensor:
    """Sixteen rows of a weight, each projected on one fixed random direction.

    Quantisation hardly turns this vector, and weights of two models have no more of it in common than chance.

    Parameters
    ----------
    matrix : (d_out, d_in) tensor
        The weight, any float dtype and device.

    Returns
    -------
    (16,) float32 tensor
        On the CPU.
    """
    generator = torch.Generator().manual_seed(matrix.shape[1])
    direction = torch.randn(matrix.shape[1], generator=generator).to(matrix.device)
    rows = torch.linspace(0, matrix.shape[0] - 1, 16, device=matrix.device).long()
    return (matrix[rows].float() @ direction).cpu()


def check_same_model(
    model: nn.Module, fingerprints: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse results that were computed on another model.

    Parameters
    ----------
    model : torch.nn.Module
        The model that the results are to be used with.
    fingerprints, shapes : mapping
        Of the modules of the results, by full name.

    Raises
    ------
    ValueError
        If a module is missing, has another shape, or its weight points elsewhere.
    """
    modules = dict(model.named_modules())
    for name, expected in shapes.items():
        if name not in modules:
            raise ValueError(
                f"these results are of another model: it has {name}, this one does not; calibrate this model"
            )
        if shape(modules[name]) != tuple(expected):
            raise ValueError(
                f"these results are of another model: {name} was {tuple(expected)}, here it is "
                f"{shape(modules[name])}; calibrate this model"
            )
        here = fingerprint(weight(modules[name]))
        alike = torch.nn.functional.cosine_similarity(here, fingerprints[name], dim=0)
        if not alike > 0.9:
            raise ValueError(
                f"these results are of another model: the weight of {name} is not the one that was calibrated "
                f"(likeness {float(alike):.2f} of 1); calibrate this model"
            )
