"""Pure tensor functions: orthonormal bases, randomised decompositions, tiled products. No models in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Product = Callable[[Tensor], Tensor]

TILE = 1 << 18
"""Entries of one tile of a product: 1 MB of float32, so that it stays in a core's cache."""


def row_tiles(rows: int, columns: int) -> Iterator[slice]:
    """Slices over ``rows`` such that a tile of full rows has at most `TILE` entries (or is one row)."""
    height = max(1, TILE // max(columns, 1))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def add_gram_(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"], blocks: int = 4) -> None:
    """Add ``x^T x`` to the upper block triangle of ``total``, in place.

    Only blocks on and above the diagonal are touched (0.63 of the work of the full product for four blocks);
    `mirror_` fills in the rest once at the end.
    """
    d = total.shape[0]
    step = -(-d // blocks)
    for start in range(0, d, step):
        rows = slice(start, min(start + step, d))
        total[rows, start:].addmm_(x[:, rows].T, x[:, start:])


def mirror_(total: Float[Tensor, "d d"]) -> None:
    """Copy the upper triangle over the lower one, in place."""
    upper = total.triu()
    total.copy_(upper + upper.triu(1).T)


def orthonormal_rows(rows: int, d: int, generator: torch.Generator) -> Float[Tensor, "rows d"]:
    """Seeded Gaussian rows, orthonormalised: a uniformly random subspace of dimension ``rows``."""
    gaussian = torch.randn(d, rows, generator=generator)
    return torch.linalg.qr(gaussian).Q.T.contiguous()


def fix_signs(rows: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """Turn each row so that its entry of largest magnitude is positive."""
    pivot = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.where(pivot < 0, -1.0, 1.0)


def complete_rows(
    rows: Float[Tensor, "k d"], rank: int, generator: torch.Generator
) -> Float[Tensor, "rank d"]:
    """Extend orthonormal rows to ``rank`` orthonormal rows by seeded random directions.

    Parameters
    ----------
    rows : (k, d) tensor
        Orthonormal rows, ``k <= rank <= d``.
    rank : int
        Rows wanted.
    generator : torch.Generator
        CPU generator that the new directions are drawn from.

    Returns
    -------
    (rank, d) tensor
        The given rows, unchanged, followed by the new ones.
    """
    k, d = rows.shape
    fresh = torch.randn(rank - k, d, generator=generator).to(rows)
    for _ in range(2):  # the second projection removes what rounding left of the first
        fresh = fresh - (fresh @ rows.T) @ rows
        fresh = torch.linalg.qr(fresh.T).Q.T
    return torch.cat([rows, fresh])


@dataclass(frozen=True)
class Leading:
    """Leading right singular vectors of a matrix and how they were found.

    Attributes
    ----------
    rows : (k, d_in) float32 tensor
        Orthonormal, by falling singular value, signs fixed.
    singular_values : (k,) float32 tensor
        Estimates of the singular values, falling.
    iterations : int
        Subspace iterations that were run.
    """

    rows: Tensor
    singular_values: Tensor
    iterations: int


def leading_right_singular_vectors(
    product: Product,
    transposed: Product,
    d_in: int,
    k: int,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    oversampling: int = 16,
    tolerance: float = 1e-3,
    max_iterations: int = 20,
) -> Leading:
    """Leading right singular vectors of ``M`` from products with ``M`` and ``M^T`` alone.

    Randomised subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4), orthonormalised in each half step,
    repeated until no wanted singular value moves by more than ``tolerance`` of itself. Captured energy, a sum of
    squares, then moves by far less.

    Parameters
    ----------
    product : callable
        Maps (d_in, j) to ``M @ x`` of shape (d_out, j).
    transposed : callable
        Maps (d_out, j) to ``M.T @ y`` of shape (d_in, j).
    d_in : int
        Number of columns of ``M``.
    k : int
        Vectors wanted, at most ``min(d_in, d_out)``.
    generator : torch.Generator
        CPU generator of the start.
    device : device
        Where the products run.
    oversampling : int
        Directions carried beyond ``k``.
    tolerance : float
        Largest relative change of a singular value at which the iteration stops.
    max_iterations : int
        Upper bound on the iterations.

    Returns
    -------
    Leading
        On ``device``, float32.
    """
    width = min(k + oversampling, d_in)
    q = orthonormal_rows(width, d_in, generator).to(device).T
    before = torch.zeros(k, device=device)
    for iteration in range(1, max_iterations + 1):
        y = product(q)
        left, triangle = torch.linalg.qr(y)
        values = torch.linalg.svdvals(triangle)[:k]
        floor = values[0] * torch.finfo(values.dtype).eps * 64
        settled = bool(((values - before).abs() <= tolerance * values + floor).all())
        if settled or iteration == max_iterations:
            break
        before = values
        q = torch.linalg.qr(transposed(left)).Q
    _, singular_values, vh = torch.linalg.svd(triangle, full_matrices=False)
    rows = vh[:k] @ q.T
    return Leading(fix_signs(rows), singular_values[:k], iteration)


def symmetric_powers(
    c: Float[Tensor, "d d"], shrinkage: float
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """``C^(1/2)`` and ``C^(-1/2)`` of a covariance shrunk towards ``tr(C)/d * I``, decomposed in float64.

    Parameters
    ----------
    c : (d, d) float32 tensor
        Symmetric, positive semi-definite.
    shrinkage : float
        Weight of the identity, in (0, 1]; keeps the inverse finite where ``C`` has no full rank.

    Returns
    -------
    (d, d) float32 tensor
        The square root.
    (d, d) float32 tensor
        The inverse square root.
    """
    d = c.shape[0]
    values, vectors = torch.linalg.eigh(c.double())
    values = (1 - shrinkage) * values.clamp(min=0) + shrinkage * values.clamp(min=0).sum() / d
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors * values.rsqrt()) @ vectors.T
    return root.to(c.dtype), inverse.to(c.dtype)
