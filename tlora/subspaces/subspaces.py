"""Subspaces: the input directions that an adapter's A may read (the result of stage 3 of TLoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor

from tlora.calibration.spectrum import Spectrum, sort_descending
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.targets import Target
from tlora.models.weights import check_same_model
from tlora.results import Meta


@dataclass(frozen=True, repr=False, eq=False)
class Subspaces(ModuleResult):
    """An orthonormal basis of input directions for each target module, most important direction first.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kind : str
        The matrix whose right singular vectors these are; see `task_subspaces`.
    max_rank : int
        Largest rank of a basis; a smaller module is limited by its own size. For subspaces computed from an allocation,
        the allocation's largest rank.
    bases : dict of (k, d_in) float32 tensor
        Orthonormal rows, ``k = min(max_rank, d_in, d_out)``, or the module's rank in the allocation.
    singular_values : dict of (k,) float32 tensor
        Descending; zero from ``numerical_rank`` on, and all zero for kind ``"random"``.
    numerical_rank : dict of int
        Rows determined by the matrix; seeded random directions complete the basis from there on.
    row_variance : dict of (k,) float32 tensor
        ``a^T C a`` of each row ``a``: variance of the inputs along it; the second moment with ``centered=False``.
    traces : dict of float
        Total input variance ``tr(C)`` of each module, or the trace of the second moment.
    fingerprints : dict of (16,) float32 tensor
        As in `Calibration`.
    meta : Meta
        Model, task, seed.

    Examples
    --------
    >>> subspaces
    Subspaces(14 modules of base, kind 'wc', up to rank 8)
    >>> subspaces.basis(subspaces.names[0], rank=4).shape
    torch.Size([4, 32])
    """

    kind: str
    max_rank: int
    bases: dict[str, Tensor]
    singular_values: dict[str, Tensor]
    numerical_rank: dict[str, int]
    row_variance: dict[str, Tensor]
    traces: dict[str, float]
    fingerprints: dict[str, Tensor]
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "rank": "rows of the basis",
        "numerical_rank": "rows determined by the matrix; the rest is a seeded completion",
        "first_singular_value": "largest singular value of the decomposed matrix",
        "last_singular_value": "smallest singular value kept",
        "explained_variance": "share of the inputs' variance within the basis",
    }

    def basis(self, name: str, rank: int) -> Tensor:
        """The first ``rank`` directions of a module.

        Parameters
        ----------
        name : str
            Full module name.
        rank : int
            Number of rows.

        Returns
        -------
        (rank, d_in) float32 tensor
            Orthonormal rows.

        Raises
        ------
        KeyError
            If there is no such module.
        ValueError
            If the rank is below 1 or above the number of computed rows.
        """
        if name not in self.bases:
            raise KeyError(f"no subspace for module {name!r}: there are {len(self.bases)}, e.g. {self.names[0]!r}")
        rows = self.bases[name]
        if not 1 <= rank <= len(rows):
            raise ValueError(
                f"{name} needs rank {rank}, its basis has {len(rows)} directions: use 1 to {len(rows)}, or compute the "
                "ranks of an allocation with task_subspaces(..., max_rank=allocation)"
            )
        return rows[:rank].clone()

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        values = self.singular_values.values()
        return module_frame(self.targets.values()).assign(
            rank=[len(rows) for rows in self.bases.values()],
            numerical_rank=list(self.numerical_rank.values()),
            first_singular_value=[float(v[0]) for v in values],
            last_singular_value=[float(v[-1]) for v in values],
            explained_variance=[float(self.row_variance[n].sum() / self.traces[n]) for n in self.names],
        )

    def spectrum(self) -> Spectrum:
        """Squared singular values of the matrix behind each subspace: the energy of each direction.

        Returns
        -------
        Spectrum
            Of the same kind, truncated at the largest rank. For kind ``"c"`` it is the spectrum of ``C`` itself, and
            its trace is known; for other kinds the trace is known only if no direction is missing. Its dimension is the
            width of the input: with fewer tokens than that, its effective ranks are looser bounds than those of
            `Calibration.spectrum`.

        Raises
        ------
        ValueError
            If the subspaces are random.
        """
        if self.kind == "random":
            raise ValueError("kind 'random' comes from no matrix and has no spectrum: choose another, e.g. 'wc'")
        values = {name: sort_descending(sigma) for name, sigma in self.singular_values.items()}
        if self.kind == "c":
            traces, sizes = dict(self.traces), {name: target.d_in for name, target in self.targets.items()}
        else:
            values = {name: sigma.square() for name, sigma in values.items()}
            sizes = {name: min(shape) for name, shape in self.shapes.items()}
            # no value is missing if there are as many as the matrix has, or if they end in zero
            complete = {name: len(v) == sizes[name] or bool(v[-1] == 0) for name, v in values.items()}
            traces = {name: float(v.double().sum()) if complete[name] else float("nan") for name, v in values.items()}
        return Spectrum(
            targets=dict(self.targets),
            eigenvalues=values,
            traces=traces,
            dimensions=sizes,
            inputs={name: name for name in values},
            kind=self.kind,
            meta=self.meta,
        )

    def _summary(self) -> str:
        short = sum(self.numerical_rank[n] < len(rows) for n, rows in self.bases.items())
        completed = f", {short} completed beyond their numerical rank" if short else ""
        return (
            f"{len(self.bases)} modules of {self.meta.model}, kind {self.kind!r}, up to rank {self.max_rank}{completed}"
        )


def subspaces_by_label(subspaces: Subspaces | Mapping[str, Subspaces]) -> dict[str, Subspaces]:
    """Subspaces by label: those of one kind under its name."""
    return {subspaces.kind: subspaces} if isinstance(subspaces, Subspaces) else dict(subspaces)


def check_subspaces(model: Any, subspaces: Mapping[str, Subspaces]) -> dict[str, Target]:
    """The modules of subspaces by label; refuse anything else, other modules in one of them, and another model."""
    _check_same_modules(subspaces)
    for checked in subspaces.values():
        check_same_model(model, checked.fingerprints, checked.shapes)
    first = next(iter(subspaces.values()))
    return {name: target for name, target in first.targets.items() if name in first.bases}


def _check_same_modules(subspaces: Mapping[str, Subspaces]) -> None:
    if not subspaces:
        raise ValueError("no subspaces: give at least one, e.g. {'wc': task_subspaces(model, calibration)}")
    first, *others = subspaces
    for label in others:
        if only := sorted(set(subspaces[first].names) ^ set(subspaces[label].names)):
            raise ValueError(
                f"subspaces {first!r} and {label!r} are of different modules: only one of them has {only[0]}; compute "
                "all from calibrations with the same target_modules"
            )
