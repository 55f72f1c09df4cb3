"""The mean gradient of a weight, whole or as a sketch, without autograd ever holding it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

SKETCH_ABOVE = 1 << 22
"""Entries above which a gradient is sketched: 16 MB of float32."""

SKETCH_RANK = 128
"""Columns of the range sketch; the co-range sketch has twice as many rows and one more."""


@dataclass(frozen=True, eq=False)
class Gradient:
    """Mean gradient ``(1/N) sum_n dL_n/dW`` as a product ``left @ right``.

    Attributes
    ----------
    left : (d_out, k) float32 tensor
        Orthonormal columns of a sketch; the identity is not stored: None where the gradient is whole.
    right : (k, d_in) float32 tensor
        Coefficients of a sketch, or the whole gradient.
    """

    left: Float[Tensor, "d_out k"] | None = field(repr=False)
    right: Float[Tensor, "k d_in"] = field(repr=False)

    @property
    def is_sketch(self) -> bool:
        """Whether this is a low-rank approximation."""
        return self.left is not None

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The whole matrix, float32."""
        return self.right if self.left is None else self.left @ self.right

    def __matmul__(self, x: Tensor) -> Tensor:
        """``G @ x`` for a (d_in, k) tensor, on the device of ``x``."""
        y = self.right.to(x) @ x
        return y if self.left is None else self.left.to(x) @ y

    def transposed(self, y: Tensor) -> Tensor:
        """``G.T @ y`` for a (d_out, k) tensor, on the device of ``y``."""
        if self.left is not None:
            y = self.left.to(y).T @ y
        return self.right.to(y).T @ y


class GradientSum:
    """Running sum of weight gradients, row tile by row tile.

    Small weights keep the whole sum. Large ones keep two linear sketches, ``Y = G Omega`` and ``Z = Psi G``, from
    which ``G`` is approximated as ``Q (Psi Q)^+ Z`` with ``Q`` an orthonormal basis of the range of ``Y``.

    Parameters
    ----------
    d_out, d_in : int
        Shape of the weight.
    seed : int
        Seed of the sketching matrices.
    device : device
        Where the sums live.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Practical sketching algorithms for low-rank matrix approximation,
    algorithm 4.
    """

    def __init__(self, d_out: int, d_in: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.sketched = d_out * d_in > SKETCH_ABOVE
        if not self.sketched:
            self.whole = torch.zeros(d_out, d_in, device=device)
            return
        generator = torch.Generator().manual_seed(seed)
        k = min(SKETCH_RANK, d_out, d_in)
        self.omega = torch.randn(d_in, k, generator=generator).to(device)
        self.psi = torch.randn(min(2 * k + 1, d_out), d_out, generator=generator).to(device)
        self.range = torch.zeros(d_out, k, device=device)
        self.corange = torch.zeros(self.psi.shape[0], d_in, device=device)

    def update(self, rows: slice, tile: Float[Tensor, "rows d_in"]) -> None:
        """Add the gradient's rows ``rows``."""
        if not self.sketched:
            self.whole[rows] += tile
            return
        self.range[rows] += tile @ self.omega
        self.corange += self.psi[:, rows] @ tile

    def finish(self, samples: int) -> Gradient:
        """The mean over ``samples``."""
        if not self.sketched:
            return Gradient(None, (self.whole / samples).cpu())
        q = torch.linalg.qr(self.range).Q
        right = torch.linalg.lstsq((self.psi @ q).cpu(), self.corange.cpu()).solution
        return Gradient(q.cpu(), right / samples)
