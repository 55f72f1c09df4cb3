"""Gradient capture: the share of the true gradient that an adapter with a frozen A can follow."""

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
from tlora.calibration.forward_backward import prepare_batches, run_batches
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.observe_experts import Rows
from tlora.models.targets import Model, Target
from tlora.models.weights import model_name
from tlora.numerics.sketching import SecondMoment, sketching_matrix
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces, check_subspaces
from tlora.utils.progress import progress_bar
from tlora.utils.reproducibility import module_seed
from tlora.utils.validation import check_arguments, require_confidence, require_positive_int

EXACT_UP_TO = 2048
"""Largest width of a module whose second moment of gradients is kept dense: 16 MB of float32."""

SKETCH_FACTOR, SKETCH_EXTRA = 4, 64
"""Columns of the sketch for a wider module: a multiple of the rank, and some more."""


@dataclass(frozen=True, repr=False, eq=False)
class GradientCapture(ModuleResult):
    """Share of the squared gradient that lies within subspaces: ``sum_n ||G_n A^T||_F^2 / sum_n ||G_n||_F^2``.

    ``G_n = dL_n/dW`` is the gradient of sample ``n`` alone, ``A`` has orthonormal rows. An adapter whose ``A`` is
    frozen moves ``W`` only within the span of ``A``; the share outside is what freezing ``A`` costs.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kinds : list of str
        Labels of the subspaces.
    ranks : list of int
        Ascending.
    captured : (N, M, K, R) float32 tensor
        ``||G_n A^T||_F^2`` by sample, module, kind and rank; samples in the order of the input.
    total : (N, M) float32 tensor
        ``||G_n||_F^2``, (nats per token and unit of weight) squared.
    best : (M, R) float64 tensor
        The upper bound for any subspace of each rank on these samples: the sum of the leading eigenvalues of
        ``sum_n G_n^T G_n``.
    confidence : float
        Of the intervals in the tables.
    resamples : int
        Bootstrap resamples behind the intervals.
    meta : Meta
        Model, task and number of the samples; seed of the resampling.

    Notes
    -----
    Intervals are percentile bootstrap intervals over samples, each for one number alone; NaN for a single sample.
    Samples with large gradients weigh more, as they do in a step of gradient descent.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Examples
    --------
    >>> capture = tlora.gradient_capture(model, task.calibration(4), {"wc": subspaces}, ranks=[2, 8], progress=False)
    >>> capture
    GradientCapture(14 modules, 4 samples, at rank 2: wc ...%; by chance ...%, at best ...%)
    >>> capture.overall()[["kind", "rank"]].to_numpy().tolist()
    [['wc', 2], ['wc', 8]]
    """

    kinds: list[str]
    ranks: list[int]
    captured: Float[Tensor, "samples modules kinds ranks"]
    total: Float[Tensor, "samples modules"]
    best: Float[Tensor, "modules ranks"]
    confidence: float
    resamples: int
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "kind": "label of the subspace",
        "rank": "dimension of the subspace",
        "captured": "share of the squared gradient within the subspace; NaN if the module gets no gradient",
        "low": "lower end of the bootstrap interval over samples",
        "high": "upper end",
        "random": "expected share of a random subspace, rank / d_in",
        "best": "share within the best subspace of that rank for these samples",
    }

    @cached_property
    def _frame(self) -> pd.DataFrame:
        keys = module_frame(self.targets.values()).merge(_kind_rank_frame(self.kinds, self.ranks), how="cross")
        return keys.assign(**self._shares(np.eye(len(self.targets))))

    def to_frame(self) -> pd.DataFrame:
        """One row for each module, kind and rank; see ``columns``."""
        return self._frame.copy()

    def overall(self, by: Literal["layer", "projection"] | None = None) -> pd.DataFrame:
        """Share of the squared gradient of all modules together, or of groups, as of one long vector.

        Parameters
        ----------
        by : {"layer", "projection"}, optional
            Group the modules by layer or projection; all modules are one group by default.

        Returns
        -------
        pandas.DataFrame
            One row for each group, kind and rank: the group, ``kind``, ``rank``, and ``captured``, ``low``, ``high``,
            ``random``, ``best`` as in `to_frame`.
        """
        labels: dict[str | None, Mapping[str, Any]] = {
            None: dict.fromkeys(self.targets, ""),
            "layer": self.layers,
            "projection": self.projections,
        }
        values = list(labels[by].values())
        groups = list(dict.fromkeys(values))
        member = np.array([[value == group for group in groups] for value in values], dtype=float)
        table = _kind_rank_frame(self.kinds, self.ranks)
        if by is not None:
            table = pd.DataFrame({by: groups}).merge(table, how="cross")
        return table.assign(**self._shares(member))

    def _shares(self, groups: Float[np.ndarray, "modules groups"]) -> dict[str, np.ndarray]:
        """Shares by group, kind and rank; each column of ``groups`` marks the modules that it adds up."""
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
        """Ends of the bootstrap intervals for the ratio of ``parts`` to ``totals``."""
        if len(parts) < 2:
            return (np.full(parts.shape[1], np.nan),) * 2
        # one seed for both, so that a resample draws a sample's part and its total together
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
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    subspaces: Mapping[str, Subspaces],
    ranks: Iterable[int] = (8, 32),
    *,
    gradient_checkpointing: bool | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    task: str = "",
    progress: bool = True,
) -> GradientCapture:
    """Measure the share of held-out samples' gradients that lies within each subspace.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    batches : iterable of dict
        As for `calibrate`; samples the subspaces were not computed from.
    subspaces : mapping of str to Subspaces
        Subspaces by a label, e.g. their kind; all of the same modules of this model.
    ranks : iterable of int
        Ranks to measure at.
    gradient_checkpointing : bool, optional
        As for `calibrate`.
    confidence : float
        Of the bootstrap intervals, between 0 and 1.
    resamples : int
        Number of bootstrap resamples.
    seed : int
        Seed of the resampling.
    task : str
        Name of the task; by default that of the batches, if they have one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    GradientCapture

    Raises
    ------
    ValueError
        If the subspaces are of other modules or of another model, a basis has fewer directions than a rank, a batch
        does not fit the model, or a gradient is not finite.

    Notes
    -----
    With ``D_n`` the gradient at a module's output, ``G_n = D_n^T X_n``, and ``D_n^T = Q R`` gives ``R X_n``, which
    has no more rows than the sample has tokens and the same products: ``||G_n A^T|| = ||R X_n A^T||`` and
    ``G_n^T G_n = (R X_n)^T R X_n``. No gradient of the size of ``W`` is formed. Bases are nested, so one product
    serves all ranks. ``best`` is exact for modules of up to 2048 inputs; for wider ones it comes from a sketch and is a
    lower bound.

    Examples
    --------
    >>> held_out = task.calibration(4)
    >>> capture = tlora.gradient_capture(model, held_out, {"wc": subspaces}, ranks=[2, 8], progress=False)
    >>> [f"{share:.2f}" for share in capture.overall()["captured"]]
    ['0...', '0...']
    """
    check_arguments(gradient_capture, locals())
    targets = check_subspaces(model, subspaces)
    wanted = _validate_ranks(subspaces, ranks)
    level, resamples = require_confidence(confidence), require_positive_int(resamples, "resamples")
    energies = _Energies(targets, subspaces, wanted, seed)
    shown = progress_bar(batches, desc="gradient capture", unit="batch", show=progress)
    run_batches(
        model,
        targets,
        prepare_batches(model, shown),
        energies,
        gradient_checkpointing=gradient_checkpointing,
        bar=shown,
    )
    captured, total = torch.cat(energies.captured).cpu(), torch.cat(energies.totals).cpu()
    if broken := [name for name, column in zip(targets, total.T, strict=True) if not bool(column.isfinite().all())]:
        raise ValueError(
            f"the gradient of {broken[0]} is not finite (NaN or infinity) on these samples: look at the module after "
            "it, or load the model with dtype='float32'"
        )
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
            model=model_name(model),
            task=task or getattr(batches, "task", ""),
            recipe={"ranks": wanted, "subspaces": {label: s.meta.recipe for label, s in subspaces.items()}},
            seed=seed,
            samples=energies.samples,
        ),
    )


class _Energies:
    """Squared norms of each sample's gradient, total and within the subspaces, collected during the backward pass."""

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
        self._samples: range
        self._added: set[tuple[str, ...]]

    def start_batch(self, batch: Batch) -> None:
        """Prepare for a new batch."""
        self.samples += len(batch)
        shape = (len(batch), len(self.targets))
        self.totals.append(torch.zeros(shape, device=batch.device))
        self.captured.append(torch.zeros(*shape, len(self.subspaces), len(self.ranks), device=batch.device))

    def start_part(self, part: Batch, samples: slice, added: set[tuple[str, ...]]) -> None:
        """Prepare for samples of the batch."""
        self._batch, self._samples, self._added = part, range(samples.start, samples.stop), added

    def add_inputs(self, name: str, inputs: list[Rows], tensors: tuple[int, ...]) -> None:
        """Do nothing: inputs alone give no statistics."""

    def add_gradients(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Add the norms of each sample, after summing over the calls of the module."""
        target, column = self.targets[name], self._column[name]
        pairs = zip(self._batch.gradient_rows(gradients), self._batch.gradient_rows(inputs), strict=True)
        rows = torch.stack([s.basis(name, self.ranks[-1]) for s in self.subspaces]).to(gradients[0].device)
        moment = self._moment(target, rows.device)
        for n, (d, x) in zip(self._samples, pairs, strict=True):
            if (name, str(n)) in self._added:
                continue
            y = torch.linalg.qr(d.float().T, mode="r").R @ x.float()
            self.totals[-1][n, column] = y.square().sum()
            energies = (y @ rows.flatten(0, 1).T).square().sum(0).view(rows.shape[:2]).cumsum(1)
            self.captured[-1][n, column] = energies[:, [rank - 1 for rank in self.ranks]]
            moment.update(y)
            self._added.add((name, str(n)))

    def _moment(self, target: Target, device: torch.device) -> SecondMoment:
        if target.name not in self._moments:
            omega = None
            if target.d_in > EXACT_UP_TO:
                seed = module_seed(self.seed, target.name)
                omega = sketching_matrix(target.d_in, SKETCH_FACTOR * self.ranks[-1] + SKETCH_EXTRA, seed).to(device)
            self._moments[target.name] = SecondMoment(target.d_in, device, omega)
        return self._moments[target.name]

    def best(self) -> Float[Tensor, "modules ranks"]:
        """The upper bound for any subspace of each rank, over all samples."""
        best = torch.zeros(len(self.targets), len(self.ranks), dtype=torch.float64)
        for name, moment in self._moments.items():
            best[self._column[name]] = moment.energies(self.ranks[-1])[[rank - 1 for rank in self.ranks]]
        return best


def _validate_ranks(subspaces: Mapping[str, Subspaces], ranks: Iterable[int]) -> list[int]:
    """The ranks in ascending order; refuse bases that do not reach them."""
    wanted = sorted({require_positive_int(rank, "a rank") for rank in ranks})
    if not wanted:
        raise ValueError("no ranks to measure at: give at least one")
    for checked in subspaces.values():
        for name in checked.names:
            checked.basis(name, wanted[-1])
    return wanted


def _kind_rank_frame(kinds: list[str], ranks: list[int]) -> pd.DataFrame:
    """One row for each kind and rank, in this order."""
    return pd.DataFrame({"kind": np.repeat(np.array(kinds, dtype=object), len(ranks)), "rank": ranks * len(kinds)})
