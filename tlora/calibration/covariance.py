"""Covariance of a module's inputs (stage 1 of TLoRA), dense or as a sketch, behind one interface."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.calibration.sample_means import SampleMeans, SampleMeansSum, merge_means
from tlora.numerics.linalg import Product, mirror_, nystrom, symmetric_powers
from tlora.numerics.sketching import SecondMoment
from tlora.utils.distributed import Processes


@dataclass(frozen=True, eq=False)
class Covariance(ABC):
    """Input covariance of one module, or of several that read the same tensor.

    ``C = (1/N) sum_n Xc_n^T Xc_n``, with ``Xc_n`` the real tokens of sample ``n`` minus their mean.

    Attributes
    ----------
    total : tensor
        The sum over samples, float32: the whole matrix, or a sketch of it.
    rank_bound : int
        ``sum_n max(T_n - 1, 0)``: the upper bound on its rank, whatever ``d_in`` is.
    samples : int
        ``N``.
    means : SampleMeans or None
        The token means of the samples, for `second_moment`; None for a second moment, which includes them, and for the
        Fisher matrices of ``Calibration.fisher``.

    Notes
    -----
    As in the authors' code, tokens are summed and samples averaged, so a longer sample has more weight. A common factor
    changes no subspace. The sum is kept, not the mean, so that more samples can be added.

    References
    ----------
    TLoRA, arXiv 2604.18124, the covariance of its initialization of A.

    Examples
    --------
    >>> covariance = calibration.covariance[calibration.names[0]]
    >>> covariance.dense().shape
    torch.Size([32, 32])
    >>> bool(covariance.second_moment().trace > covariance.trace)
    True
    """

    total: Float[Tensor, "d_in columns"] = field(repr=False)
    rank_bound: int
    samples: int = 1
    means: SampleMeans | None = field(default=None, repr=False)

    @abstractmethod
    def dense(self) -> Float[Tensor, "d_in d_in"]:
        """The whole matrix, float32."""

    @abstractmethod
    def __matmul__(self, x: Tensor) -> Tensor:
        """``C @ x`` for a (d_in, k) tensor, on the device of ``x``."""

    @property
    @abstractmethod
    def trace(self) -> float:
        """Total variance: the sum of the eigenvalues, in squared units of the activation."""

    @abstractmethod
    def eigenvalues(self) -> Float[Tensor, " k"]:
        """All known eigenvalues in descending order, clipped at zero."""

    @abstractmethod
    def powers(self, shrinkage: float) -> tuple[Product, Product]:
        """Products of ``C^(1/2)`` and ``C^(-1/2)`` with (d_in, k) tensors.

        ``C`` is first shrunk towards ``tr(C)/d_in * I``, whose weight ``shrinkage`` in (0, 1] keeps the inverse finite.
        """

    @property
    def rank_kept(self) -> int:
        """Upper bound on the rank of the stored form: ``rank_bound``, or the size of a sketch."""
        return self.rank_bound

    @property
    def error(self) -> float:
        """Share of the total variance that a sketch misses; 0 for a dense covariance."""
        return 0.0

    def second_moment(self) -> Self:
        """``M = (1/N) sum_n X_n^T X_n``: the second moment of the inputs, their means included.

        Returns
        -------
        Covariance
            In the same form, dense or sketched, with the same normalization: a sum over tokens, a mean over samples.

        Notes
        -----
        With ``X_n = Xc_n + 1 mu_n^T`` and ``Xc_n^T 1 = 0``, ``X_n^T X_n = Xc_n^T Xc_n + T_n mu_n mu_n^T``. Hence
        ``M = C + (1/N) sum_n T_n mu_n mu_n^T``, exactly, and ``N tr(D M D^T)`` is the squared error that a change ``D``
        of the weight makes in the outputs for these tokens: ``sum_n ||X_n D^T||_F^2``.
        """
        assert self.means is not None, "a second moment includes them"
        total = self.total + self.means.moment()
        return dataclasses.replace(self, total=total, rank_bound=self.rank_bound + self.means.count, means=None)

    def to(self, device: torch.device | str) -> Self:
        """The same covariance on ``device``."""
        means = None if self.means is None else self.means.to(device)
        return dataclasses.replace(self, total=self.total.to(device), means=means)

    def merge(self, other: Covariance) -> Self:
        """The covariance of the samples of this and of ``other``."""
        return dataclasses.replace(
            self,
            total=self.total + other.total,
            rank_bound=self.rank_bound + other.rank_bound,
            samples=self.samples + other.samples,
            means=self._merge_means(other),
        )

    def _merge_means(self, other: Covariance, omega: Tensor | None = None) -> SampleMeans | None:
        if self.means is None or other.means is None:
            return None
        return merge_means(self.means, other.means, omega)


@dataclass(frozen=True, eq=False)
class DenseCovariance(Covariance):
    """A covariance kept whole: ``total`` is (d_in, d_in) and symmetric."""

    def dense(self) -> Float[Tensor, "d_in d_in"]:
        """The whole matrix, float32."""
        return self.total / self.samples

    def __matmul__(self, x: Tensor) -> Tensor:
        """``C @ x`` for a (d_in, k) tensor, on the device of ``x``."""
        return (self.total.to(x) @ x).div_(self.samples)

    @property
    def trace(self) -> float:
        """Total variance: the sum of the eigenvalues, in squared units of the activation."""
        return float(self.total.diagonal().double().sum()) / self.samples

    def eigenvalues(self) -> Float[Tensor, " k"]:
        """All eigenvalues in descending order, clipped at zero."""
        return torch.linalg.eigvalsh(self.total.double() / self.samples).flip(0).clamp(min=0).float()

    def powers(self, shrinkage: float) -> tuple[Product, Product]:
        """Products with ``C^(1/2)`` and ``C^(-1/2)`` after shrinking ``C``."""
        root, inverse = symmetric_powers(self.dense(), shrinkage)
        return root.__matmul__, inverse.__matmul__


@dataclass(frozen=True, eq=False)
class SketchedCovariance(Covariance):
    """A covariance kept as the sketch ``total = N C @ omega``, (d_in, s): ``C`` itself is never formed.

    All results are of its Nyström approximation, of rank at most ``s``, which lies below ``C``: ``error`` is
    exactly the missing share of the trace, and an upper bound for that of any direction.

    Attributes
    ----------
    omega : (d_in, s) float32 tensor
        The random matrix of the sketch; modules of the same width share one object.
    total_trace : float
        Trace of ``N C``.

    References
    ----------
    Tropp, Yurtsever, Udell & Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from
    streaming data, algorithm 3.
    """

    omega: Float[Tensor, "d_in size"] = field(repr=False, kw_only=True)
    total_trace: float = field(kw_only=True)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and vectors of the approximation, float32."""
        values, vectors = nystrom(self.total, self.omega)
        return (values / self.samples).float(), vectors.float()

    def dense(self) -> Float[Tensor, "d_in d_in"]:
        """The approximation as a whole matrix, float32."""
        values, vectors = self._eigen
        return (vectors * values) @ vectors.T

    def __matmul__(self, x: Tensor) -> Tensor:
        """``C @ x`` for a (d_in, k) tensor, on the device of ``x``."""
        values, vectors = (part.to(x) for part in self._eigen)
        return vectors @ (values[:, None] * (vectors.T @ x))

    @property
    def trace(self) -> float:
        """Total variance, exactly: that of ``C``, not of its approximation."""
        return self.total_trace / self.samples

    def eigenvalues(self) -> Float[Tensor, " k"]:
        """All eigenvalues of the sketch in descending order; lower bounds."""
        return self._eigen[0].cpu().clone()

    def powers(self, shrinkage: float) -> tuple[Product, Product]:
        """Products with ``C^(1/2)`` and ``C^(-1/2)`` after shrinking ``C``."""
        values, vectors = self._eigen
        flat = max(shrinkage * self.trace / len(vectors), torch.finfo(torch.float32).tiny)
        whole = (1 - shrinkage) * values + flat

        def power(exponent: float) -> Product:
            beyond = flat**exponent

            def product(x: Tensor) -> Tensor:
                u = vectors.to(x)
                return beyond * x + u @ ((whole.to(x) ** exponent - beyond)[:, None] * (u.T @ x))

            return product

        return power(0.5), power(-0.5)

    @property
    def rank_kept(self) -> int:
        """Upper bound on the rank of the sketch: ``rank_bound``, or its size."""
        return min(self.rank_bound, self.total.shape[1])

    @property
    def error(self) -> float:
        """Share of the total variance that the sketch misses, exactly."""
        return max(1 - float(self._eigen[0].double().sum()) / self.trace, 0.0) if self.trace else 0.0

    def second_moment(self) -> Self:
        """``M = (1/N) sum_n X_n^T X_n`` as a sketch: sketches are linear, so those of ``C`` and of the means add up."""
        assert self.means is not None
        total, trace = self.total + self.means.moment(self.omega), self.total_trace + self.means.trace
        bound = self.rank_bound + self.means.count
        return dataclasses.replace(self, total=total, total_trace=trace, rank_bound=bound, means=None)

    def to(self, device: torch.device | str) -> Self:
        """The same covariance on ``device``."""
        return dataclasses.replace(super().to(device), omega=self.omega.to(device))

    def merge(self, other: Covariance) -> Self:
        """The covariance of the samples of this and of ``other``."""
        assert isinstance(other, SketchedCovariance)
        return dataclasses.replace(super().merge(other), total_trace=self.total_trace + other.total_trace)

    def _merge_means(self, other: Covariance, omega: Tensor | None = None) -> SampleMeans | None:
        return super()._merge_means(other, self.omega)


class MomentSum:
    """Running second moment of rows in float32; with ``omega`` (d_in, s), a sketch of it."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu", omega: Tensor | None = None) -> None:
        self.moment = SecondMoment(d_in, device, omega)
        self.rank_bound = 0

    def add(self, rows: Float[Tensor, "_ d_in"]) -> None:
        """Add rows."""
        self.moment.update(rows)
        self.rank_bound += len(rows)

    def resume(self, earlier: Covariance) -> None:
        """Start from a finished sum."""
        self.moment.total.copy_(earlier.total)
        if isinstance(earlier, SketchedCovariance):
            self.moment.trace.fill_(earlier.total_trace)
        self.rank_bound = earlier.rank_bound

    def finish(self, samples: int, omega: Tensor | None = None) -> Covariance:
        """The mean over this many samples, on the CPU, like the sketch's ``omega``."""
        total, means = self.moment.total, self._finish_means()
        if omega is None:
            mirror_(total)
            return DenseCovariance(total.cpu(), self.rank_bound, samples, means)
        trace = float(self.moment.trace)
        return SketchedCovariance(total.cpu(), self.rank_bound, samples, means, omega=omega, total_trace=trace)

    def reduce(self, processes: Processes) -> None:
        """Replace the sums, except ``rank_bound``, by those over all processes."""
        processes.sum_([self.moment.total, self.moment.trace])

    def _finish_means(self) -> SampleMeans | None:
        return None


class CovarianceSum(MomentSum):
    """Running sum of the covariances of samples, with their means."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu", omega: Tensor | None = None) -> None:
        super().__init__(d_in, device, omega)
        self.means = SampleMeansSum(d_in, device, omega)

    def update(self, samples: list[Float[Tensor, "_ d_in"]]) -> None:
        """Add the counted tokens of samples; one with fewer than two tokens adds nothing."""
        tokens = [len(x) for x in samples]
        centered = torch.cat(samples).float()  # a copy: the samples are the model's tensors
        means = []
        for sample in centered.split(tokens):
            if len(sample):
                mean = sample.mean(0)
                sample.sub_(mean)
                means.append(mean * len(sample) ** 0.5)
        rows = torch.stack(means) if means else centered[:0]
        self.moment.update(centered)
        self.means.update(rows)
        self.rank_bound += sum(max(n - 1, 0) for n in tokens)

    def resume(self, earlier: Covariance) -> None:
        """Start from a finished sum."""
        super().resume(earlier)
        assert earlier.means is not None
        self.means.add(earlier.means)

    def reduce(self, processes: Processes) -> None:
        """Replace the sums, except ``rank_bound``, by those over all processes."""
        super().reduce(processes)
        if processes.count > 1:
            self.means = self.means.total(processes.gather(self.means.finish()))

    def _finish_means(self) -> SampleMeans:
        return self.means.finish()
