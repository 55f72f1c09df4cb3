"""The second moment of gradients, ``sum_n G_n^T G_n``: what is the most that any subspace could capture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.linalg import add_gram_, mirror_

EXACT_UP_TO = 2048
"""Largest width of a module whose second moment is kept whole: 16 MB of float32."""

SKETCH_FACTOR, SKETCH_EXTRA = 4, 64
"""Columns of the sketch of a wider one: so many times the rank, and so many more."""


class SecondMoment:
    """Running sum of ``Y^T Y``, whole or as a sketch, from which come its leading eigenvalues.

    Parameters
    ----------
    d : int
        Columns of ``Y``.
    rank : int
        How many leading eigenvalues will be asked for.
    seed : int
        Seed of the sketching matrix.
    device : device
        Where the sum lives.

    Notes
    -----
    The sketch is ``Z = S Omega`` of the sum ``S``, linear in it, so that neither order nor batches matter. Its
    Nyström approximation never exceeds ``S``: the eigenvalues are lower bounds, close where the spectrum falls.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, algorithm 3.
    """

    def __init__(self, d: int, rank: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.omega: Tensor | None = None
        if d > EXACT_UP_TO:
            generator = torch.Generator().manual_seed(seed)
            gaussian = torch.randn(d, min(d, SKETCH_FACTOR * rank + SKETCH_EXTRA), generator=generator)
            self.omega = torch.linalg.qr(gaussian).Q.to(device)
        self.total = torch.zeros(d, d if self.omega is None else self.omega.shape[1], device=device)

    def update(self, y: Float[Tensor, "k d"]) -> None:
        """Add ``y^T y``."""
        if self.omega is None:
            add_gram_(self.total, y)
        else:
            self.total.addmm_(y.T, y @ self.omega)

    def energies(self, rank: int) -> Float[Tensor, " rank"]:
        """Sums of the leading 1, 2, ... ``rank`` eigenvalues, float64 on the CPU."""
        if self.omega is None:
            mirror_(self.total)
            values = torch.linalg.eigvalsh(self.total.double()).flip(0)
        else:
            values = _nystrom_eigenvalues(self.total.double(), self.omega.double())
        return values[:rank].clamp(min=0).cumsum(0).cpu()


def _nystrom_eigenvalues(z: Float[Tensor, "d s"], omega: Float[Tensor, "d s"]) -> Float[Tensor, " s"]:
    """Falling eigenvalues of the Nyström approximation of ``S`` from ``z = S @ omega``."""
    # what float32 rounding can make of zero: added, the core has a Cholesky factor whatever its rank; then taken off
    shift = len(z) ** 0.5 * torch.finfo(torch.float32).eps * z.norm()
    if shift == 0:
        return z.new_zeros(z.shape[1])
    shifted = z + shift * omega
    core = omega.T @ shifted
    factor = torch.linalg.cholesky((core + core.T) / 2)
    half = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
    return torch.linalg.svdvals(half).square() - shift
