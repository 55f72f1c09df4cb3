"""The mean gradient of a weight, whole or as a sketch, never held by autograd."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

SKETCH_ABOVE = 1 << 22
"""Entries above which a gradient is sketched: 16 MB of float32."""

SKETCH_RANK = 128
"""Columns of the range sketch; the co-range sketch has twice as many rows plus one."""


def sketch_sizes(d_out: int, d_in: int, *, is_one_of_many: bool = False) -> tuple[int, int] | None:
    """Columns of the range sketch and rows of the co-range sketch; None for a small weight.

    One of many experts is sketched whenever that takes at most half of the memory.
    """
    k = min(SKETCH_RANK, d_out, d_in)
    rows = min(2 * k + 1, d_out)
    is_large = 2 * (k * d_out + rows * d_in) <= d_out * d_in if is_one_of_many else d_out * d_in > SKETCH_ABOVE
    return (k, rows) if is_large else None


@dataclass(frozen=True, eq=False)
class Gradient:
    """Mean gradient ``(1/N) sum_n dL_n/dW``, whole or as a sketch.

    Small weights keep the whole sum ``G``. Large ones keep two linear sketches, ``G omega`` and ``psi G``, from which
    it is approximated as ``Q (psi Q)^+ psi G`` with ``Q`` an orthonormal basis of the range of ``G omega``.

    Attributes
    ----------
    corange : (d_out, d_in) or (l, d_in) float32 tensor
        ``G``, or ``psi G``.
    samples : int
        ``N``.
    range : (d_out, k) float32 tensor or None
        ``G omega`` of a sketch.
    psi : (d_out, l) float32 tensor or None
        The transpose of ``psi`` of a sketch; modules with the same number of outputs share one object.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Practical sketching algorithms for low-rank matrix approximation,
    algorithm 4.
    """

    corange: Float[Tensor, "l d_in"] = field(repr=False)
    samples: int
    range: Float[Tensor, "d_out k"] | None = field(default=None, repr=False)
    psi: Float[Tensor, "d_out l"] | None = field(default=None, repr=False)

    @cached_property
    def _factors(self) -> tuple[Tensor | None, Tensor]:
        """Orthonormal ``left`` (d_out, k), None for the identity, and ``right`` (k, d_in) of the sum."""
        if self.range is None or self.psi is None:
            return None, self.corange
        q = torch.linalg.qr(self.range).Q
        return q, torch.linalg.lstsq(self.psi.T @ q, self.corange).solution

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The whole matrix, float32."""
        left, right = self._factors
        return (right if left is None else left @ right) / self.samples

    def __matmul__(self, x: Tensor) -> Tensor:
        """``G @ x`` for a (d_in, k) tensor, on the device of ``x``."""
        left, right = self._factors
        y = right.to(x) @ x / self.samples
        return y if left is None else left.to(x) @ y

    def transposed(self, y: Tensor) -> Tensor:
        """``G.T @ y`` for a (d_out, k) tensor, on the device of ``y``."""
        left, right = self._factors
        if left is not None:
            y = left.to(y).T @ y
        return right.to(y).T @ y / self.samples

    def merge(self, other: Gradient) -> Gradient:
        """The mean gradient of the samples of both."""
        both = None if self.range is None or other.range is None else self.range + other.range
        return dataclasses.replace(
            self, corange=self.corange + other.corange, samples=self.samples + other.samples, range=both
        )


class GradientSum:
    """Running sum of weight gradients by tiles; with ``omega`` (d_in, k) and ``psi`` (d_out, l), sketches of it."""

    def __init__(
        self,
        d_out: int,
        d_in: int,
        device: torch.device | str = "cpu",
        omega: Tensor | None = None,
        psi: Tensor | None = None,
    ) -> None:
        self.omega, self.psi = omega, psi
        self.range = None if omega is None else torch.zeros(d_out, omega.shape[1], device=device)
        self.corange = torch.zeros(d_out if psi is None else psi.shape[1], d_in, device=device)

    def update(self, rows: slice, columns: slice, tile: Float[Tensor, "rows columns"]) -> None:
        """Add a tile of the gradient."""
        if self.range is None or self.omega is None or self.psi is None:
            self.corange[rows, columns] += tile.to(self.corange.device)
            return
        self.range[rows].addmm_(tile, self.omega[columns])
        self.corange[:, columns].addmm_(self.psi[rows].T, tile)

    def resume(self, earlier: Gradient) -> None:
        """Start from a finished sum."""
        for tensor, value in zip(self.tensors(), (earlier.corange, earlier.range), strict=False):
            tensor.copy_(value)  # type: ignore[arg-type]  # as many as there are tensors

    def finish(self, samples: int, psi: Tensor | None = None) -> Gradient:
        """The mean over this many samples, on the CPU, like the sketch's ``psi``."""
        return Gradient(self.corange.cpu(), samples, None if self.range is None else self.range.cpu(), psi)

    def tensors(self) -> list[Tensor]:
        """The sums, which processes add up in place."""
        return [self.corange] if self.range is None else [self.corange, self.range]
