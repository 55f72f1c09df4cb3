"""Pure tensor functions: angles between subspaces. No models in here."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def principal_angles(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, " k"]:
    """Principal angles between two subspaces.

    Parameters
    ----------
    a, b : (p, d) and (q, d) tensor
        Rows that span the subspaces, linearly independent.

    Returns
    -------
    (min(p, q),) float64 tensor
        Radians, rising, from 0 to pi/2. Small angles come from their sine: the cosine of an angle below 1e-8
        is 1 in float64.

    References
    ----------
    Björck & Golub (1973), Numerical methods for computing angles between linear subspaces; as in
    `scipy.linalg.subspace_angles`, which gives them falling.
    """
    if len(a) < len(b):
        a, b = b, a
    a, b = orthonormal(a), orthonormal(b)
    product = a @ b.T
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(b - product.T @ a).flip(0).clamp(max=1)
    return torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos())


def overlap_by_rank(a: Float[Tensor, "r d"], b: Float[Tensor, "r d"]) -> Float[Tensor, " r"]:
    """Overlap of the spans of the first 1, 2, ... r rows: ``||A B^T||_F^2 / r``.

    Parameters
    ----------
    a, b : (r, d) tensor
        Linearly independent rows, the most important first.

    Returns
    -------
    (r,) float64 tensor
        Mean squared cosine of the principal angles: 1 for the same subspace, 0 for orthogonal ones; ``r / d``
        is expected of two random ones.
    """
    squares = (orthonormal(a) @ orthonormal(b).T).square()
    ranks = torch.arange(1, len(squares) + 1, device=squares.device)
    return (squares.cumsum(0).cumsum(1).diagonal() / ranks).clamp(max=1)


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """The rows orthonormalised in float64, with nested spans: to float32 they were so only up to its rounding."""
    return torch.linalg.qr(rows.double().T).Q.T
