"""Covariance of a module's inputs (stage 1 of TLoRA)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tlora.linalg import add_gram_, mirror_


@dataclass(frozen=True, eq=False)
class Covariance:
    """Input covariance of one module, or of several that read the same tensor.

    ``C = (1/N) sum_n Xc_n^T Xc_n``, with ``Xc_n`` the real tokens of sample ``n`` minus their mean.

    Attributes
    ----------
    matrix : (d_in, d_in) float32 tensor
        Symmetric, on the CPU.
    rank_bound : int
        ``sum_n max(T_n - 1, 0)``: no more independent directions can be in it, whatever ``d_in`` is.

    Notes
    -----
    As in the authors' code, tokens are summed and samples averaged, so that a longer sample weighs more. A common
    factor changes no subspace.

    References
    ----------
    TLoRA, arXiv 2604.18124, the covariance of its initialisation of A.
    """

    matrix: Float[Tensor, "d_in d_in"] = field(repr=False)
    rank_bound: int

    def dense(self) -> Float[Tensor, "d_in d_in"]:
        """The whole matrix, float32."""
        return self.matrix

    def __matmul__(self, x: Tensor) -> Tensor:
        """``C @ x`` for a (d_in, k) tensor, on the device of ``x``."""
        return self.matrix.to(x) @ x

    @property
    def trace(self) -> float:
        """Total variance: the sum of the eigenvalues, in squared units of the activation."""
        return float(self.matrix.diagonal().double().sum())

    def eigenvalues(self, k: int | None = None) -> Float[Tensor, " k"]:
        """The ``k`` largest eigenvalues (all by default), falling; rounding below zero is cut off."""
        values = torch.linalg.eigvalsh(self.matrix.double()).flip(0).clamp(min=0).float()
        return values[:k]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.matrix.nbytes


class CovarianceSum:
    """Running sum of the covariances of samples, in float32 whatever the model computes in.

    Parameters
    ----------
    d_in : int
        Width of the inputs.
    device : device
        Where the sum lives.
    """

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(d_in, d_in, device=device)
        self.rank_bound = 0

    def update(self, x: Float[Tensor, "samples tokens d_in"], counted: Bool[Tensor, "samples tokens"]) -> None:
        """Add a padded batch.

        Parameters
        ----------
        x : (B, T, d_in) tensor
            Inputs, any float dtype.
        counted : (B, T) bool tensor
            Tokens that count, in the mean as well; a sample with fewer than two adds nothing.
        """
        tokens = counted.sum(1).tolist()
        centred = x[counted].float()  # what stands at a padded position, NaN included, is never read
        for sample in centred.split(tokens):
            if len(sample):
                sample.sub_(sample.mean(0))
        add_gram_(self.total, centred)
        self.rank_bound += sum(max(n - 1, 0) for n in tokens)

    def finish(self, samples: int) -> Covariance:
        """The covariance, averaged over ``samples``."""
        mirror_(self.total)
        return Covariance(self.total.div_(samples).cpu(), self.rank_bound)
