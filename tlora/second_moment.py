"""The running second moment ``sum_n Y_n^T Y_n`` of rows, whole or as a sketch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.linalg import add_gram_, add_product_, mirror_, nystrom


class SecondMoment:
    """Running sum of ``Y^T Y`` in float32.

    Parameters
    ----------
    d : int
        Columns of ``Y``.
    device : device
        Where the sum lives.
    omega : (d, s) float32 tensor, optional
        On the same device: keep the sketch ``S @ omega`` of the sum ``S``; without it, the sum is kept whole.

    Attributes
    ----------
    total : (d, d) or (d, s) float32 tensor
        The sum, of which only the upper block triangle is kept up to date, or its sketch.
    trace : () float64 tensor
        Trace of ``S``, of a sketch only: that of the whole sum is on its diagonal.

    Notes
    -----
    The sketch is linear in ``S``: neither the order of the rows nor how they are split among batches or processes
    matters. Its Nyström approximation never exceeds ``S``, where products are of float32.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, algorithm 3.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu", omega: Tensor | None = None) -> None:
        self.omega = omega
        self.total = torch.zeros(d, d if omega is None else omega.shape[1], device=device)
        self.trace = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, y: Float[Tensor, "k d"], dtype: torch.dtype = torch.float32) -> None:
        """Add ``y^T y``, with factors rounded to ``dtype``."""
        if self.omega is None:
            add_gram_(self.total, y.to(dtype))
            return
        self.trace += y.square().sum(dtype=torch.float64)
        y = y.to(dtype)
        add_product_(self.total, y.T, y @ self.omega.to(dtype))

    def energies(self, rank: int) -> Float[Tensor, " rank"]:
        """Sums of the leading 1, 2, ... ``rank`` eigenvalues, float64 on the CPU; lower bounds from a sketch."""
        if self.omega is None:
            mirror_(self.total)
            values = torch.linalg.eigvalsh(self.total.double()).flip(0)
        else:
            values = nystrom(self.total, self.omega)[0]
        return values[:rank].clamp(min=0).cumsum(0).cpu()
