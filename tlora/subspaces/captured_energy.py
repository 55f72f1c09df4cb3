"""Captured energy: how much of ``W C`` each subspace holds, rank by rank (what stage 3 of TLoRA maximises)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.models.module_result import ModuleResult
from tlora.models.weights import base_modules, check_same_model, weight
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces, task_subspaces
from tlora.utils.reproducibility import exact_products
from tlora.utils.validation import check_type, positive_int


@dataclass(frozen=True, repr=False, eq=False)
class CapturedEnergy(ModuleResult):
    """Energy of ``W C`` within subspaces, next to that of the best subspace of the same rank.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kinds : list of str
        What the subspaces are called.
    ranks : list of int
        Rising.
    captured : (M, K, R) float64 tensor
        ``||W C A^T||_F^2`` by module, kind and rank.
    best : (M, R) float64 tensor
        ``sum_{k<=r} sigma_k^2``, with ``sigma`` the singular values of ``W C``: the largest of any subspace.
    total : (M,) float64 tensor
        ``||W C||_F^2``.
    meta : Meta
        Of the calibration.

    References
    ----------
    TLoRA, arXiv 2604.18124: the initialisation of A from the SVD of weight times input covariance, whose best
    low-rank approximation this is measured against (Eckart & Young, 1936).
    """

    kinds: list[str]
    ranks: list[int]
    captured: Float[Tensor, "modules kinds ranks"]
    best: Float[Tensor, "modules ranks"]
    total: Float[Tensor, " modules"]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "kind": "what the subspace is called",
        "rank": "dimension of the subspace",
        "captured": "energy of W C within it, as a share of what the best subspace of that rank holds",
        "random": "share expected of a random subspace",
        "total": "energy of W C within it, as a share of all of its energy",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row a module, kind and rank; see ``columns``."""
        captured, best = self.captured.numpy(), self.best.numpy()[:, None]
        total = self.total.numpy()[:, None, None]
        parts = np.array(self.ranks) / np.array([d_in for _, d_in in self.shapes.values()])[:, None]
        with np.errstate(invalid="ignore"):
            random = np.broadcast_to(parts[:, None] * total / best, captured.shape)
            shares = {"captured": captured / best, "random": random, "total": captured / total}
        keys = pd.DataFrame(self._places()).merge(by_kind(self.kinds, self.ranks), how="cross")
        return keys.assign(**{name: values.ravel() for name, values in shares.items()})

    def overall(self) -> pd.DataFrame:
        """The share of the best over all modules.

        Returns
        -------
        pandas.DataFrame
            One row a kind and rank: ``kind``, ``rank``, ``captured`` (median over modules), ``low`` and ``high``
            (its quartiles), ``random`` (median).
        """
        groups = self.to_frame().groupby(["kind", "rank"], sort=False)
        quartiles = groups["captured"].quantile([0.5, 0.25, 0.75]).unstack()
        quartiles.columns = pd.Index(["captured", "low", "high"])
        return quartiles.assign(random=groups["random"].median()).reset_index()

    def _summary(self) -> str:
        table, rank = self.overall(), self.ranks[0]
        rows = table[table["rank"] == rank].head(8)
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in zip(rows["kind"], rows["captured"], strict=True))
        return f"{len(self.targets)} modules of {self.meta.model}, share of the best at rank {rank}, median: {shares}"


@exact_products()
def captured_energy(
    model: Any,
    calibration: Calibration,
    subspaces: Mapping[str, Subspaces],
    ranks: Iterable[int] = (8, 32),
    *,
    progress: bool = True,
) -> CapturedEnergy:
    """How much of the energy of ``W C`` each subspace holds.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model that was calibrated. Read only.
    calibration : Calibration
        Whose covariances are meant; a subspace may come from another one of the same model.
    subspaces : mapping of str to Subspaces
        What to call them, e.g. their kinds.
    ranks : iterable of int
        Ranks to measure at.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CapturedEnergy

    Raises
    ------
    TypeError
        If ``subspaces`` is not a mapping of Subspaces.
    ValueError
        If it is empty, its members are of other modules or of another model, or a rank is beyond what one has.

    Notes
    -----
    The best is found as `task_subspaces` finds kind ``"wc"``, to about 1e-5 of it.
    """
    wanted = checked_ranks(subspaces, ranks)
    check_type(calibration, Calibration, "calibrate(...)")
    for label, subspace in subspaces.items():
        if set(subspace.names) != set(calibration.names):
            raise ValueError(
                f"the subspaces {label!r} are of other modules than the calibration: compute them with task_subspaces "
                "from a calibration with the same target_modules"
            )
        check_same_model(model, subspace.fingerprints, subspace.shapes)
    best = task_subspaces(model, calibration, max_rank=wanted[-1], progress=progress)
    modules, captured, optimum, total = base_modules(model), [], [], []
    for name in tqdm(calibration.names, desc="captured energy", unit="module", disable=not progress):
        w, c = weight(modules[name], name).float(), calibration.covariance[name]
        rows = torch.stack([s.basis(name, wanted[-1]) for s in subspaces.values()])
        captured.append(_energies(w, c, rows.to(w.device))[:, [rank - 1 for rank in wanted]])
        found = best.singular_values[name].double().square().cumsum(0)[[rank - 1 for rank in wanted]]
        optimum.append(torch.maximum(found, captured[-1].amax(0)))
        total.append(_energy(w, c))
    return CapturedEnergy(
        targets=dict(calibration.targets),
        kinds=list(subspaces),
        ranks=wanted,
        captured=torch.stack(captured),
        best=torch.stack(optimum),
        total=torch.tensor(total, dtype=torch.float64),
        meta=Meta(
            calibration.meta.model, calibration.meta.task, {"ranks": wanted}, best.meta.seed, calibration.meta.samples
        ),
    )


def _energies(
    w: Float[Tensor, "d_out d_in"], c: Covariance, rows: Float[Tensor, "kinds rank d_in"]
) -> Float[Tensor, "kinds rank"]:
    """``||W C A^T||_F^2`` of the first 1, 2, ... rows of each basis, float64 on the CPU."""
    products = w @ (c @ rows.flatten(0, 1).T)
    return products.double().square().sum(0).view(rows.shape[:2]).cumsum(1).cpu()


def _energy(w: Float[Tensor, "d_out d_in"], c: Covariance) -> float:
    """``||W C||_F^2``, some rows at a time."""
    dense = c.dense().to(w)
    return sum(float((rows @ dense).double().square().sum()) for rows in w.split(1024))


def checked_ranks(subspaces: Mapping[str, Subspaces], ranks: int | Iterable[int]) -> list[int]:
    """The ranks, rising, if every subspace has them and all are of the same modules.

    Raises
    ------
    TypeError
        If ``subspaces`` is not a mapping of Subspaces.
    ValueError
        If there are no subspaces or no ranks, the modules differ, or a rank is below 1 or beyond a basis.
    """
    if not isinstance(subspaces, Mapping) or not all(isinstance(s, Subspaces) for s in subspaces.values()):
        raise TypeError(
            f"subspaces is a {type(subspaces).__name__}: pass a dict of Subspaces by name, e.g. "
            "{'wc': task_subspaces(model, calibration)}"
        )
    wanted = sorted({positive_int(rank, "a rank") for rank in (ranks if isinstance(ranks, Iterable) else [ranks])})
    if not subspaces or not wanted:
        raise ValueError(f"{len(subspaces)} subspaces at {len(wanted)} ranks: give at least one of both")
    first, *others = subspaces
    for label in others:
        if only := sorted(set(subspaces[first].names) ^ set(subspaces[label].names)):
            raise ValueError(
                f"subspaces {first!r} and {label!r} are of different modules: only one of them has {only[0]}; compute "
                "all from calibrations with the same target_modules"
            )
    for subspace in subspaces.values():
        for name in subspace.names:
            subspace.basis(name, wanted[-1])
    return wanted


def by_kind(kinds: list[str], ranks: list[int]) -> pd.DataFrame:
    """The keys of a table with one row a kind and rank, in this order."""
    return pd.DataFrame({"kind": np.repeat(np.array(kinds, dtype=object), len(ranks)), "rank": ranks * len(kinds)})
