"""The token means of samples: the difference between the second moment of the inputs and their covariance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from tlora.numerics.linalg import mirror_
from tlora.numerics.sketching import SecondMoment


@dataclass(frozen=True, eq=False)
class SampleMeans:
    """``P = sum_n T_n mu_n mu_n^T``, with ``mu_n`` the mean of the ``T_n`` tokens of sample ``n`` that count.

    It is kept as rows while these are few, and as a sum in the form of the covariance once rows would take more memory.

    Attributes
    ----------
    rows : (n, d_in) float32 tensor
        ``sqrt(T_n) mu_n`` of the samples that are not in the sum.
    count : int
        Samples with a counted token, those in the sum included.
    folded : (d_in, d_in) or (d_in, s) float32 tensor or None
        The sum over the other samples, whole or times the ``omega`` of a sketch.
    folded_trace : float
        Trace of that sum, only for a sketch.
    """

    rows: Float[Tensor, "n d_in"] = field(repr=False)
    count: int
    folded: Float[Tensor, "d_in columns"] | None = field(default=None, repr=False)
    folded_trace: float = 0.0

    def moment(self, omega: Tensor | None = None) -> Float[Tensor, "d_in columns"]:
        """``P``, or ``P @ omega`` for the (d_in, s) ``omega`` of a sketch; float32."""
        few = self.rows.T @ (self.rows if omega is None else self.rows @ omega)
        return few if self.folded is None else few.add_(self.folded)

    @property
    def trace(self) -> float:
        """Trace of ``P``, if the sum is a sketch."""
        return self.folded_trace + float(self.rows.double().square().sum())

    def to(self, device: torch.device | str) -> Self:
        """The same means on another device."""
        folded = None if self.folded is None else self.folded.to(device)
        return dataclasses.replace(self, rows=self.rows.to(device), folded=folded)


class SampleMeansSum:
    """Running `SampleMeans`; ``omega`` (d_in, s) is that of the covariance's sketch."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu", omega: Tensor | None = None) -> None:
        self._form = (d_in, device, omega)
        self._most_rows = d_in if omega is None else omega.shape[1]
        self._rows = [torch.zeros(0, d_in, device=device)]
        self._folded: SecondMoment | None = None
        self.count = 0

    def update(self, rows: Float[Tensor, "n d_in"]) -> None:
        """Add the ``sqrt(T_n) mu_n`` of samples."""
        if len(rows):
            self._add_rows(rows, len(rows))

    def add(self, means: SampleMeans) -> None:
        """Add the means of other samples."""
        if means.folded is not None:
            moment = self._moment()
            moment.total += means.folded.to(moment.total)
            moment.trace += means.folded_trace
        self._add_rows(means.rows, means.count)

    def total(self, parts: Iterable[SampleMeans]) -> SampleMeansSum:
        """A new sum of the same form over all of these."""
        total = SampleMeansSum(*self._form)
        for means in parts:
            total.add(means)
        return total

    def finish(self) -> SampleMeans:
        """The means so far, on the CPU."""
        rows = torch.cat(self._rows).cpu()
        if self._folded is None:
            return SampleMeans(rows, self.count)
        if self._folded.omega is None:
            mirror_(self._folded.total)
        return SampleMeans(rows, self.count, self._folded.total.cpu(), float(self._folded.trace))

    def _add_rows(self, rows: Tensor, count: int) -> None:
        self._rows.append(rows.to(self._rows[0]))
        self.count += count
        if sum(map(len, self._rows)) > self._most_rows:
            self._moment().update(torch.cat(self._rows))
            self._rows = self._rows[:1]

    def _moment(self) -> SecondMoment:
        if self._folded is None:
            self._folded = SecondMoment(*self._form)
        return self._folded


def merge_means(one: SampleMeans, other: SampleMeans, omega: Tensor | None = None) -> SampleMeans:
    """The means of the samples of both; ``omega`` is that of their covariances' sketches."""
    total = SampleMeansSum(one.rows.shape[1], one.rows.device, omega)
    for means in (one, other):
        total.add(means)
    return total.finish()
