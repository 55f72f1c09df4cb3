"""Gradient capture: what part of the true gradient an adapter with a frozen A can follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tlora.calibration.batches import Batch
from tlora.calibration.forward_backward import check_batches, observe, prepared
from tlora.models.hooks import Recorder
from tlora.models.module_result import ModuleResult
from tlora.models.targets import Target, target_modules
from tlora.models.weights import check_same_model
from tlora.numerics.sketching import SecondMoment, sketching_matrix
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.results import Meta
from tlora.subspaces.captured_energy import by_kind, checked_ranks
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.reproducibility import module_seed
from tlora.utils.validation import confidence_level, positive_int

EXACT_UP_TO = 2048
"""Largest width of a module whose second moment of gradients is kept whole: 16 MB of float32."""

SKETCH_FACTOR, SKETCH_EXTRA = 4, 64
"""Columns of the sketch of a wider one: so many times the rank, and so many more."""


@dataclass(frozen=True, repr=False, eq=False)
class GradientCapture(ModuleResult):
    """Share of the squared gradient that lies within subspaces: ``sum_n ||G_n A^T||_F^2 / sum_n ||G_n||_F^2``.

    ``G_n = dL_n/dW`` is the gradient of sample ``n`` alone, ``A`` has orthonormal rows. An adapter whose ``A`` is
    frozen moves ``W`` within the span of ``A`` only; the share that is outside is what freezing ``A`` costs.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kinds : list of str
        What the subspaces are called.
    ranks : list of int
        Rising.
    captured : (N, M, K, R) float32 tensor
        ``||G_n A^T||_F^2`` by sample, module, kind and rank; samples in the order of the input.
    total : (N, M) float32 tensor
        ``||G_n||_F^2``, (nats per token and unit of weight) squared.
    best : (M, R) float64 tensor
        The most that one subspace of each rank captures of these samples: the sum of the leading eigenvalues of
        ``sum_n G_n^T G_n``. It is chosen in hindsight, for these very samples.
    confidence : float
        Of the intervals in the tables.
    resamples : int
        Bootstrap resamples of the samples behind them.
    meta : Meta
        Model, task and number of the samples; seed of the resampling.

    Notes
    -----
    Intervals are percentile bootstrap intervals over samples, each of one number alone; NaN for a single sample.
    Samples with large gradients weigh more, as they do in a step of gradient descent.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """

    kinds: list[str]
    ranks: list[int]
    captured: Float[Tensor, "samples modules kinds ranks"]
    total: Float[Tensor, "samples modules"]
    best: Float[Tensor, "modules ranks"]
    confidence: float
    resamples: int
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "kind": "what the subspace is called",
        "rank": "dimension of the subspace",
        "captured": "share of the squared gradient within it; NaN where no gradient arrives",
        "low": "lower end of the bootstrap interval over samples",
        "high": "upper end",
        "random": "share expected of a random subspace, rank / d_in",
        "best": "share within the best subspace of that rank for these samples",
    }

    @cached_property
    def _frame(self) -> pd.DataFrame:
        keys = pd.DataFrame(self._places()).merge(by_kind(self.kinds, self.ranks), how="cross")
        return keys.assign(**self._shares(np.eye(len(self.targets))))

    def to_frame(self) -> pd.DataFrame:
        """One row a module, kind and rank; see ``columns``."""
        return self._frame.copy()

    def overall(self, by: Literal["layer", "projection"] | None = None) -> pd.DataFrame:
        """The share of the squared gradient of several modules together, as of one long vector.

        Parameters
        ----------
        by : {"layer", "projection"}, optional
            Put the modules of a layer, or of a projection, together; all of them when left out.

        Returns
        -------
        pandas.DataFrame
            One row a group, kind and rank: the group, ``kind``, ``rank``, and ``captured``, ``low``, ``high``,
            ``random``, ``best`` as in `to_frame`.

        Raises
        ------
        ValueError
            If ``by`` is something else.
        """
        labels: dict[str | None, Mapping[str, Any]] = {
            None: dict.fromkeys(self.targets, ""),
            "layer": self.layers,
            "projection": self.projections,
        }
        if by not in labels:
            raise ValueError(f"by={by!r}: choose 'layer' or 'projection', or leave it out for all modules together")
        values = list(labels[by].values())
        groups = list(dict.fromkeys(values))
        member = np.array([[value == group for group in groups] for value in values], dtype=float)
        table = by_kind(self.kinds, self.ranks)
        if by is not None:
            table = pd.DataFrame({by: groups}).merge(table, how="cross")
        return table.assign(**self._shares(member))

    def _shares(self, groups: Float[np.ndarray, "modules groups"]) -> dict[str, np.ndarray]:
        """Columns of shares by group, kind and rank, of the modules that each column of ``groups`` adds up."""
        n, _, *rest = self.captured.shape
        parts = np.einsum("nmkr,mg->ngkr", self.captured.double().numpy(), groups).reshape(n, -1)
        totals = self.total.double().numpy() @ groups
        sums = self.total.double().sum(0).numpy()
        chance = sums[:, None] * np.array(self.ranks) / np.array([d_in for _, d_in in self.shapes.values()])[:, None]
        shape = (groups.shape[1], *rest)
        with np.errstate(invalid="ignore"):
            low, high = self._intervals(parts, totals)
            whole = totals.sum(0)
            columns = {
                "captured": parts.sum(0).reshape(shape) / whole[:, None, None],
                "low": low.reshape(shape),
                "high": high.reshape(shape),
                "random": (groups.T @ chance / whole[:, None])[:, None],
                "best": (groups.T @ self.best.numpy() / whole[:, None])[:, None],
            }
        return {name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()}

    def _intervals(self, parts: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the bootstrap intervals of the columns of ``parts`` over those of ``totals``."""
        if len(parts) < 2:
            return (np.full(parts.shape[1], np.nan),) * 2
        # one seed for both: a resample takes a sample's part and its total together
        means, whole = (bootstrap_means(x, self.resamples, self.meta.seed or 0) for x in (parts, totals))
        return interval(means / np.repeat(whole, parts.shape[1] // totals.shape[1], axis=1), self.confidence)

    def _summary(self) -> str:
        table = self.overall()
        rows = table[table["rank"] == self.ranks[0]].head(8)
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in zip(rows["kind"], rows["captured"], strict=True))
        first = rows.iloc[0]
        return (
            f"{len(self.targets)} modules, {len(self.total)} samples, at rank {self.ranks[0]}: {shares}; by chance "
            f"{first['random']:.1%}, at best {first['best']:.1%}"
        )


def gradient_capture(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    subspaces: Mapping[str, Subspaces],
    ranks: Iterable[int] = (8, 32),
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    task: str = "",
    progress: bool = True,
) -> GradientCapture:
    """What share of the true gradient of held-out samples each subspace holds.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    batches : iterable of dict
        As for `calibrate`; samples that the subspaces were not computed from.
    subspaces : mapping of str to Subspaces
        What to call them, e.g. their kinds; all of the same modules of this model.
    ranks : iterable of int
        Ranks to measure at.
    confidence : float
        Of the bootstrap intervals, between 0 and 1.
    resamples : int
        Bootstrap resamples of the samples.
    seed : int
        Seed of the resampling.
    task : str
        Name of the task; by default that which the batches carry, if any.
    progress : bool
        Show a progress bar.

    Returns
    -------
    GradientCapture

    Raises
    ------
    TypeError
        If ``subspaces`` is not a mapping of Subspaces, or the batches are one batch or nothing to go through.
    ValueError
        If it is empty, its members are of other modules or of another model, a rank is beyond what one has, a
        batch does not fit the model, or a gradient is not finite.

    Notes
    -----
    With ``D_n`` the gradient at a module's output, ``G_n = D_n^T X_n``, and ``D_n^T = Q R`` gives ``R X_n``, which
    has no more rows than the sample has tokens and the same products: ``||G_n A^T|| = ||R X_n A^T||`` and
    ``G_n^T G_n = (R X_n)^T R X_n``. No gradient of the size of ``W`` is formed. Bases are nested, so that one
    product serves all ranks. The best is exact for modules of up to 2048 inputs; for wider ones it comes from a
    sketch and is a lower bound.
    """
    wanted = checked_ranks(subspaces, ranks)
    for subspace in subspaces.values():
        check_same_model(model, subspace.fingerprints, subspace.shapes)
    first = next(iter(subspaces.values()))
    targets = {name: target for name, target in target_modules(model).items() if name in first.bases}
    level, resamples = confidence_level(confidence), positive_int(resamples, "resamples")
    energies = _Energies(targets, subspaces, wanted, seed)
    check_batches(batches)
    observe(model, targets, prepared(model, batches, "gradient capture", progress), energies)
    captured, total = torch.cat(energies.captured).cpu(), torch.cat(energies.totals).cpu()
    _check_finite(list(targets), total)
    return GradientCapture(
        targets=targets,
        kinds=list(subspaces),
        ranks=wanted,
        captured=captured,
        total=total,
        best=torch.maximum(energies.best(), captured.double().sum(0).amax(1)),
        confidence=level,
        resamples=resamples,
        meta=Meta(
            model=model.config._name_or_path or type(model).__name__,
            task=task or getattr(batches, "task", ""),
            recipe={"ranks": wanted, "subspaces": {label: s.meta.recipe for label, s in subspaces.items()}},
            seed=seed,
            samples=energies.samples,
        ),
    )


class _Energies:
    """Squared norms of each sample's gradient, whole and within the subspaces, as the backward pass goes."""

    def __init__(
        self, targets: dict[str, Target], subspaces: Mapping[str, Subspaces], ranks: list[int], seed: int
    ) -> None:
        self.targets, self.subspaces, self.ranks, self.seed = targets, list(subspaces.values()), ranks, seed
        self.captured: list[Tensor] = []
        self.totals: list[Tensor] = []
        self.samples = 0
        self._moments: dict[str, SecondMoment] = {}
        self._column = {name: i for i, name in enumerate(targets)}
        self._batch: Batch

    def start(self, batch: Batch) -> None:
        """A new batch begins."""
        self._batch = batch
        self.samples += len(batch)
        shape = (len(batch), len(self.targets))
        self.totals.append(torch.zeros(shape, device=batch.device))
        self.captured.append(torch.zeros(*shape, len(self.subspaces), len(self.ranks), device=batch.device))

    def forward_done(self, recorder: Recorder) -> None:
        """Inputs alone give no statistics."""

    def gradient_arrived(self, name: str, inputs: list[Tensor], gradients: list[Tensor]) -> None:
        """Add the norms of each sample; calls of one module in one pass are summed before."""
        target, column = self.targets[name], self._column[name]
        pairs = zip(self._batch.real_rows(gradients), self._batch.real_rows(inputs), strict=True)
        rows = torch.stack([s.basis(name, self.ranks[-1]) for s in self.subspaces]).to(gradients[0].device)
        moment = self._moment(target, rows.device)
        for n, (d, x) in enumerate(pairs):
            y = torch.linalg.qr(d.float().T, mode="r").R @ x.float()
            moment.update(y)
            self.totals[-1][n, column] = y.square().sum()
            energies = (y @ rows.flatten(0, 1).T).square().sum(0).view(rows.shape[:2]).cumsum(1)
            self.captured[-1][n, column] = energies[:, [rank - 1 for rank in self.ranks]]

    def _moment(self, target: Target, device: torch.device) -> SecondMoment:
        if target.name not in self._moments:
            omega = None
            if target.d_in > EXACT_UP_TO:
                seed = module_seed(self.seed, target.name)
                omega = sketching_matrix(target.d_in, SKETCH_FACTOR * self.ranks[-1] + SKETCH_EXTRA, seed).to(device)
            self._moments[target.name] = SecondMoment(target.d_in, device, omega)
        return self._moments[target.name]

    def best(self) -> Float[Tensor, "modules ranks"]:
        """The most that any subspace of each rank holds, over all samples."""
        found = torch.zeros(len(self.targets), len(self.ranks), dtype=torch.float64)
        for name, moment in self._moments.items():
            found[self._column[name]] = moment.energies(self.ranks[-1])[[rank - 1 for rank in self.ranks]]
        return found


def _check_finite(names: list[str], total: Float[Tensor, "samples modules"]) -> None:
    for name, column in zip(names, total.T, strict=True):
        if not bool(torch.isfinite(column).all()):
            raise ValueError(
                f"the gradient of {name} is not finite (NaN or infinity) on these samples: look at the module after "
                "it, or load the model with dtype='float32'"
            )
