"""The running second moment ``sum_n Y_n^T Y_n`` of rows, complete or as a sketch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.numerics.linalg import add_gram_, add_product_, mirror_, nystrom


class SecondMoment:
    """Running sum of ``Y^T Y`` in float32.

    Parameters
    ----------
    d : int
        Columns of ``Y``.
    device : device
        Device of the sum; complete sums take rows from another device, too.
    omega : (d, s) float32 tensor, optional
        On the same device. Keep the sketch ``S @ omega`` of the sum ``S``; by default the complete sum is kept.

    Attributes
    ----------
    total : (d, d) or (d, s) float32 tensor
        The sum, of which only the upper block triangle is kept up to date, or its sketch.
    trace : () float64 tensor
        Trace of ``S``, for a sketch only; otherwise it is on the diagonal.

    Notes
    -----
    The sketch is linear in ``S``: neither the order of the rows nor how they are split among batches or processes
    matters. Its Nyström approximation never exceeds ``S``.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, algorithm 3.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu", omega: Tensor | None = None) -> None:
        self.omega = omega
        self.total = torch.zeros(d, d if omega is None else omega.shape[1], device=device)
        self.trace = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, y: Float[Tensor, "k d"]) -> None:
        """Add ``y^T y``."""
        if self.omega is None:
            add_gram_(self.total, y)
            return
        trace, narrow = y.square().sum(dtype=torch.float64), y @ self.omega
        self.trace += trace
        add_product_(self.total, y.T, narrow)

    def energies(self, rank: int) -> Float[Tensor, " rank"]:
        """Sums of the leading 1, 2, ... ``rank`` eigenvalues, float64 on the CPU; lower bounds from a sketch."""
        if self.omega is None:
            mirror_(self.total)
            values = torch.linalg.eigvalsh(self.total.double()).flip(0)
        else:
            values = nystrom(self.total, self.omega)[0]
        return values[:rank].clamp(min=0).cumsum(0).cpu()


class SketchingMatrices:
    """Seeded matrices with orthonormal columns, created on first use, or of an earlier run, held once per device.

    Random numbers of a seed may differ between versions of torch. The matrices are therefore saved with the sketches,
    and results are merged only if theirs are equal.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = dict(tensors or {})
        self._elsewhere: dict[tuple[str, str], Tensor] = {}

    def get(self, d: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The matrix (d, size) on a device, float32; ``size`` is at most ``d``."""
        key = f"{d}.{size}"
        if key not in self.tensors:
            self.tensors[key] = sketching_matrix(d, size)
        if torch.device(device).type == "cpu":
            return self.tensors[key]
        return self._elsewhere.setdefault((key, str(device)), self.tensors[key].to(device))


def sketching_matrix(d: int, size: int, seed: int = 0) -> Tensor:
    """Seeded orthonormal columns (d, size) of a uniformly random subspace, float32 on the CPU."""
    gaussian = torch.randn(d, min(d, size), generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q.contiguous()
