"""The update of one module, ``s B A``, and its algebra: cut it, add it, scale it, measure it, without forming it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.utils.reproducibility import exact_products
from tlora.utils.validation import check_arguments, require_finite, require_positive_int

_ROUNDING = 1e-13
"""Share of the largest energy below which energies are rounding of float64."""


@runtime_checkable
class Moment(Protocol):
    """A second moment of a module's inputs, (d_in, d_in): a tensor, or anything else that is multiplied by ``@``."""

    def __matmul__(self, x: Tensor, /) -> Tensor:
        """Return the product with columns, (d_in, k)."""


@dataclass(frozen=True, repr=False, eq=False)
class LoraUpdate:
    """The change that LoRA makes to the weight of one module: the low-rank product ``s B A``.

    Attributes
    ----------
    module : str
        Full name of the module.
    a : (r, d_in) tensor
        ``A``, the input directions; (E, r, d_in) of the E experts of a parameter.
    b : (d_out, r) tensor
        ``B``, the output directions; (E, d_out, r) of experts.
    scaling : float
        The factor ``s``.

    Notes
    -----
    ``weight * update`` multiplies the scaling, and ``A`` and ``B`` stay; a sign, or a factor of zero, goes into ``B``,
    as alphas of a saved adapter are positive. ``one + other`` is exact: it has the larger rank if one ``A`` is the
    other, or its first rows, and otherwise the sum of both ranks. Whatever takes a ``moment`` measures the module's
    outputs on inputs with that uncentered second moment, and without one the weights.

    Examples
    --------
    >>> update = tlora.LoraAdapter.read("adapter").updates["model.layers.0.mlp.down_proj"]
    >>> update
    LoraUpdate(model.layers.0.mlp.down_proj, rank ... of (32, 48), scaling ...)
    >>> update.cut(1).rank, (update + update).rank == update.rank
    (1, True)
    >>> bool(torch.allclose((update + -1 * update).matrix(), torch.zeros(32, 48)))
    True
    """

    module: str
    a: Float[Tensor, "... r d_in"]
    b: Float[Tensor, "... d_out r"]
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of ``A``."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)`` of the weight, of experts of each."""
        return self.b.shape[-2], self.a.shape[-1]

    @property
    def has_experts(self) -> bool:
        """Whether it is of the experts of a parameter, with an ``A`` and a ``B`` for each."""
        return self.a.ndim == 3

    @property
    def experts(self) -> int:
        """How many experts it is of; 1 for a module."""
        return len(self.a) if self.has_experts else 1

    def matrix(self) -> Float[Tensor, "... d_out d_in"]:
        """Return ``s B A`` as a matrix."""
        return self.scaling * (self.b @ self.a)

    def __mul__(self, factor: float) -> LoraUpdate:
        factor = require_finite(factor, "the factor")
        b = self.b if factor > 0 else self.b * float(np.sign(factor))
        return replace(self, b=b, scaling=self.scaling * (abs(factor) or 1.0))

    __rmul__ = __mul__

    def __add__(self, other: LoraUpdate) -> LoraUpdate:
        check_arguments(LoraUpdate.__add__, locals())
        if (self.shape, self.experts) != (other.shape, other.experts):
            raise ValueError(
                f"{self.module} is {self.shape} and {other.module} {other.shape}: add updates of one module of one base"
            )
        return add_updates([self, other])

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> LoraUpdate:
        """Return the update with ``A`` and ``B`` detached, in a type and on a device.

        Parameters
        ----------
        dtype : torch.dtype
            Type of both.
        device : torch.device or str, optional
            Their device; by default where they are.

        Returns
        -------
        LoraUpdate
        """
        a, b = (factor.detach().to(device, dtype) for factor in (self.a, self.b))
        return replace(self, a=a, b=b)

    def fold(self) -> LoraUpdate:
        """Return the same update with a scaling of 1: ``B`` is multiplied by it, in its own precision."""
        return replace(self, b=self.b * self.scaling, scaling=1.0)

    def norm(self, moment: Moment | None = None) -> float:
        """Return the Frobenius norm of the update, of all experts, in float64.

        Parameters
        ----------
        moment : Covariance or (d_in, d_in) tensor, optional
            Measures the outputs: the root of ``tr(dW M dW^T)``.

        Returns
        -------
        float
        """
        check_arguments(LoraUpdate.norm, locals())
        return float(inner_products([self], moment).clamp(min=0).sum().sqrt())

    @exact_products()
    def singular_values(self) -> Float[Tensor, "... r"]:
        """Return the singular values of the update, largest first, float32; zeros beyond the rank of the matrix.

        With ``B = Q R`` and ``A^T = Q' R'`` they are those of ``s R R'^T``, which is r x r.
        """
        a, b = self.a.detach().float(), self.b.detach().float()
        core = torch.linalg.qr(b).R @ torch.linalg.qr(a.mT).R.mT
        sigma = torch.linalg.svdvals(self.scaling * core)
        return torch.nn.functional.pad(sigma, (0, self.rank - sigma.shape[-1]))

    def core(self, moment: Moment | None = None) -> Float[Tensor, "... r r"]:
        """Return the matrix whose eigenvalues are the squared singular values of the update, in float64.

        Parameters
        ----------
        moment : Covariance or (d_in, d_in) tensor, optional
            Measures the outputs: the singular values of ``dW M^(1/2)``.

        Returns
        -------
        (r, r) float64 tensor
            ``R (A M A^T) R^T``, with ``s B = Q R``.

        Raises
        ------
        ValueError
            If the update is not finite, or the moment is not (d_in, d_in).
        """
        check_arguments(LoraUpdate.core, locals())
        a, r = self.a.detach().double(), _qr(self).R
        core = r @ (a @ _read(self, moment)) @ r.mT
        if not core.isfinite().all():
            raise ValueError(f"the update of {self.module} is not finite: the adapter is damaged, or diverged")
        return core

    def cut(self, rank: int, moment: Moment | None = None) -> LoraUpdate:
        """Return the update of lower rank that is closest to this one.

        Parameters
        ----------
        rank : int
            The new rank; one of at least the update's own leaves it as it is.
        moment : Covariance or (d_in, d_in) tensor, optional
            Closest in the outputs; by default in the weights, which is the truncated singular value decomposition.

        Returns
        -------
        LoraUpdate

        Notes
        -----
        The best is ``U_k U_k^T dW``, with ``U_k`` the leading left singular vectors of ``dW M^(1/2)`` (Eckart & Young).
        Neither ``dW`` nor a root of ``M`` is formed: the vectors are ``Q`` times the eigenvectors of `core`.
        """
        return cut_update(self, require_positive_int(rank, "rank", 0), moment)[0]

    def __repr__(self) -> str:
        return f"LoraUpdate({self.module}, rank {self.rank} of {self.shape}, scaling {self.scaling:.4g})"


def expert_factors(a: Tensor, b: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return views (E, r, d_in) and (E, d_out, r) of ``A`` and ``B`` as PEFT stores them for all experts together.

    Its ``A`` (E * r, d_in) is by expert and then by rank, its ``B`` (d_out, r * E) by rank and then by expert.
    """
    return a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts)).permute(2, 0, 1)


def saved_factors(update: LoraUpdate) -> tuple[Tensor, Tensor]:
    """Return ``A`` and ``B`` as PEFT stores them, those of all experts together; the inverse of `expert_factors`."""
    if not update.has_experts:
        return update.a, update.b
    return update.a.flatten(0, 1), update.b.permute(1, 2, 0).flatten(1)


@dataclass(frozen=True)
class ExpertMoments:
    """The second moments of the inputs of each expert of a parameter, as one `Moment` of all."""

    moments: Sequence[Moment]

    def __matmul__(self, x: Float[Tensor, "experts d_in k"], /) -> Float[Tensor, "experts d_in k"]:
        return torch.stack([moment @ columns for moment, columns in zip(self.moments, x, strict=True)])


def leading_directions(core: Float[Tensor, "... r r"]) -> Float[Tensor, "... r r"]:
    """Return the eigenvectors of a `LoraUpdate.core` in columns, that of the largest eigenvalue first."""
    return torch.linalg.eigh((core + core.mT) / 2).eigenvectors.flip(-1)


def direction_energies(core: Float[Tensor, "... r r"], directions: Float[Tensor, "... r k"]) -> Float[Tensor, "... k"]:
    """Return the share of a squared norm that each direction holds, by its `LoraUpdate.core`; 0 if it is rounding."""
    energies = ((core @ directions) * directions).sum(-2)
    return torch.where(energies > _ROUNDING * energies.amax(-1, keepdim=True), energies, 0.0)


def cut_update(update: LoraUpdate, rank: int, moment: Moment | None = None) -> tuple[LoraUpdate, float]:
    """Cut an update as `LoraUpdate.cut` does; return it and the share of its norm that is lost."""
    core = update.core(moment)
    directions = leading_directions(core)
    energies = direction_energies(core, directions)
    whole = energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    return project(update, directions[..., :rank]), float((energies[..., rank:].sum() / whole).sqrt())


def project(update: LoraUpdate, directions: Float[Tensor, "... r k"]) -> LoraUpdate:
    """Return what an update writes in orthonormal directions, (r, k) in the basis ``Q`` of `LoraUpdate.core`.

    ``A`` is as large as ``B`` then. With all directions it is the update as it is.
    """
    if directions.shape[-1] == update.rank:
        return update
    q, r = _qr(update)
    rows, columns = directions.mT @ r @ update.a.detach().double(), q @ directions
    return balance(LoraUpdate(update.module, rows, columns)).to(update.a.dtype)


def balance(update: LoraUpdate) -> LoraUpdate:
    """Return an update whose ``B`` has orthonormal columns with an ``A`` that is as large as ``B``."""
    size = update.a.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    return replace(update, a=update.a / size[..., :, None], b=update.b * size[..., None, :])


def _qr(update: LoraUpdate) -> Any:
    """Return ``Q`` (d_out, r) and ``R`` of ``s B``, float64."""
    return torch.linalg.qr(update.scaling * update.b.detach().double())


def _read(update: LoraUpdate, moment: Moment | None) -> Float[Tensor, "... d_in r"]:
    """Return ``M A^T``, float64, or ``A^T`` without a moment."""
    columns = update.a.detach().double().mT
    if moment is None:
        return columns
    if isinstance(moment, Tensor):
        size = columns.shape[-2]
        if moment.shape[-2:] != (size, size):
            raise ValueError(
                f"{update.module} has {size} inputs, so its moment is ({size}, {size}): got {tuple(moment.shape)}"
            )
        moment = moment.to(columns)
    return moment @ columns


def have_same_a(updates: Sequence[LoraUpdate]) -> bool:
    """Whether several ``A`` are equal, or the first rows of the one with the most."""
    longest = max((update.a for update in updates), key=lambda a: a.shape[-2])
    return all(torch.equal(update.a, longest[..., : update.rank, :]) for update in updates)


def add_updates(updates: Sequence[LoraUpdate]) -> LoraUpdate:
    """Return the exact sum of updates of one module: at the largest rank if all have the same ``A``, else of all ranks.

    All have one type and device. The scalings go into ``B``.
    """
    longest = max(updates, key=lambda update: update.rank)
    if not have_same_a(updates):
        a = torch.cat([update.a for update in updates], dim=-2)
        return LoraUpdate(longest.module, a, torch.cat([update.fold().b for update in updates], dim=-1))
    total = torch.zeros_like(longest.b, dtype=torch.float64)
    for update in updates:
        total[..., : update.rank] += update.scaling * update.b.double()
    return LoraUpdate(longest.module, longest.a, total.to(longest.b.dtype))


def inner_products(updates: Sequence[LoraUpdate], moment: Moment | None = None) -> Float[Tensor, "... n n"]:
    """Return ``tr(dW_i M dW_j^T)`` of updates of one module, float64, from products of the size of their ranks."""
    folded = [update.to(torch.float64).fold() for update in updates]
    read = [_read(update, moment).mT for update in folded]
    # tr(B_i A_i M A_j^T B_j^T) is the sum of the entries of A_i M A_j^T times those of B_i^T B_j.
    entries = [
        [((rows @ second.a.mT) * (first.b.mT @ second.b)).sum((-2, -1)) for second in folded]
        for rows, first in zip(read, folded, strict=True)
    ]
    return torch.stack([torch.stack(row, -1) for row in entries], -2)
