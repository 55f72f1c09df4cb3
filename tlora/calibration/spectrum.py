"""Spectrum: how many directions of a module's input the task uses (from stage 1 of TLoRA)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tlora.calibration.covariance import Covariance
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.targets import Target
from tlora.results import Meta


class _Figures(NamedTuple):
    """Figures of one spectrum, in the order of the columns of `Spectrum.to_frame`."""

    effective_rank: float
    entropy_rank: float
    rank_90: float
    rank_99: float
    numerical_rank: float
    top_share: float
    covered: float


@dataclass(frozen=True, repr=False, eq=False)
class Spectrum(ModuleResult):
    """Eigenvalues of the input covariance of each module, or of ``M^T M`` for the matrix of a subspace kind.

    A truncated spectrum has the first ``k`` eigenvalues and the trace. The rest of the trace is assumed to be spread
    evenly over the remaining dimensions, which maximizes the effective rank: ``effective_rank`` and ``entropy_rank``
    are upper bounds, close if ``covered`` is near 1. If the trace is unknown (NaN: a subspace kind whose matrix is
    never formed), all figures are of the known part: lower bounds for the ranks (the known part, scaled to sum to one,
    majorizes the whole) and an upper bound for ``top_share``.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    eigenvalues : dict of (k,) float32 tensor
        In descending order, not negative, by full module name; squared units of the activations. Modules that read the
        same input share one tensor.
    traces : dict of float
        Sum of all eigenvalues, the unknown ones included; NaN if unknown.
    dimensions : dict of int
        Number of eigenvalues that can be nonzero, the unknown ones included: the width of the input, or the number of
        tokens minus one for each sample if that is less and known.
    inputs : dict of str
        First module that reads the same input, hence has the same spectrum.
    kind : str
        ``"covariance"``, or the key of a subspace kind.
    meta : Meta
        Model, task, sample count.

    References
    ----------
    Participation ratio: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement",
    2017.
    Entropy: Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007, definition 1,
    here of eigenvalues (variances) instead of singular values.

    Examples
    --------
    >>> spectrum = calibration.spectrum()
    >>> spectrum.to_frame()[["module", "effective_rank", "rank_90"]].shape
    (14, 3)
    >>> spectrum.curves(spectrum.names[0])[["direction", "cumulative"]].tail(1)
        direction  cumulative
    ...        32         1.0
    """

    eigenvalues: dict[str, Tensor]
    traces: dict[str, float]
    dimensions: dict[str, int]
    inputs: dict[str, str]
    kind: str
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "input": "first module that reads the same input",
        "dimension": "number of eigenvalues that can be nonzero",
        "trace": "sum of all eigenvalues, squared units of the activations; NaN if unknown",
        "effective_rank": "participation ratio, (sum l)^2 / sum l^2",
        "entropy_rank": "exp(H), H the entropy in nats of l / sum l",
        "rank_90": "directions that hold 90 % of the variance; NaN if more than are known",
        "rank_99": "the same for 99 %",
        "numerical_rank": "known eigenvalues above float32 rounding",
        "top_share": "share of the trace that the first direction holds",
        "covered": "share of the trace that the known eigenvalues hold; NaN if the trace is unknown",
    }

    @cached_property
    def _figures(self) -> dict[str, _Figures]:
        figures = {
            source: _figures(self.eigenvalues[source].double().numpy(), self.traces[source], self.dimensions[source])
            for source in dict.fromkeys(self.inputs.values())
        }
        return {name: figures[source] for name, source in self.inputs.items()}

    @property
    def effective_rank(self) -> dict[str, float]:
        """Participation ratio ``(sum l)^2 / sum l^2``: 1 for one direction, ``d`` for white noise."""
        return {name: figures.effective_rank for name, figures in self._figures.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row for each module; see ``columns``."""
        known = module_frame(self.targets.values()).assign(
            input=list(self.inputs.values()), dimension=list(self.dimensions.values()), trace=list(self.traces.values())
        )
        figures = pd.DataFrame([self._figures[name] for name in self.names], columns=_Figures._fields)
        return pd.concat([known, figures], axis=1)

    def curves(self, modules: str | Iterable[str] | None = None) -> pd.DataFrame:
        """The spectra themselves, one row for each module and direction.

        Parameters
        ----------
        modules : str or iterable of str, optional
            Full module names; all modules by default.

        Returns
        -------
        pandas.DataFrame
            ``module``, ``layer``, ``projection``; ``direction`` from 1; ``eigenvalue``; ``share`` of the trace;
            ``cumulative`` share of the directions up to this one. If the trace is unknown, shares are of the known
            part.
        """
        names = select_modules(self, modules)
        sizes = [len(self.eigenvalues[name]) for name in names]
        shares = [_shares(self.eigenvalues[name].double().numpy(), self.traces[name]) for name in names]
        places = module_frame(self.targets[name] for name in names)
        return (
            places.loc[places.index.repeat(sizes)]
            .assign(
                direction=np.concatenate([np.arange(1, size + 1) for size in sizes]),
                eigenvalue=np.concatenate([self.eigenvalues[name].numpy() for name in names]),
                share=np.concatenate(shares),
                cumulative=np.concatenate([np.cumsum(values) for values in shares]),
            )
            .reset_index(drop=True)
        )

    def _summary(self) -> str:
        ranks = self.effective_rank
        low, high = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        span = f"{ranks[low]:.3g} ({low}) to {ranks[high]:.3g} ({high})"
        return f"{self.kind}, {len(ranks)} modules, effective rank {span}"


def spectrum(
    covariances: Mapping[str, Covariance], inputs: Mapping[str, str], targets: Mapping[str, Target], meta: Meta
) -> Spectrum:
    """The spectrum of the covariances by first module; ``inputs`` has the first module of each module.

    Each shared covariance is decomposed once. All known eigenvalues that can be nonzero are kept.
    """
    sizes = {name: max(1, min(targets[name].d_in, c.rank_bound)) for name, c in covariances.items()}
    values = {name: sort_descending(c.eigenvalues())[: sizes[name]].clone() for name, c in covariances.items()}
    return Spectrum(
        targets=dict(targets),
        eigenvalues={name: values[first] for name, first in inputs.items()},
        traces={name: covariances[first].trace for name, first in inputs.items()},
        dimensions={name: sizes[first] for name, first in inputs.items()},
        inputs=dict(inputs),
        kind="covariance",
        meta=meta,
    )


def sort_descending(values: Tensor) -> Tensor:
    """Float32 values on the CPU in descending order, clipped at zero."""
    return values.detach().to("cpu", torch.float32).sort(descending=True).values.clamp(min=0)


def _shares(values: np.ndarray, trace: float) -> np.ndarray:
    """Shares of the trace, or of the sum of the eigenvalues if the trace is unknown or rounded below that sum."""
    total = np.fmax(values.sum(), trace)
    return values / total if total > 0 else np.zeros_like(values)


def count_directions(cumulative: np.ndarray, share: float) -> float:
    """Number of directions that hold a share of the variance: 0 for a spectrum of zeros, NaN if more than are known."""
    if cumulative[-1] == 0:
        return 0.0
    reached = cumulative >= share - 1e-6  # float32: shares closer than rounding are the same share
    return float(np.argmax(reached) + 1) if reached.any() else float("nan")


def select_modules(spectrum: Spectrum, modules: str | Iterable[str] | None) -> list[str]:
    """Full names of these modules, all by default; refuse names without a spectrum."""
    names = spectrum.names if modules is None else [modules] if isinstance(modules, str) else list(modules)
    if unknown := [name for name in names if name not in spectrum.eigenvalues]:
        raise KeyError(f"no spectrum of {unknown[0]!r}: choose from .names, e.g. {spectrum.names[0]!r}")
    if not names:
        raise ValueError("modules is empty: name at least one, or leave it out for all")
    return names


def _figures(values: np.ndarray, trace: float, dimension: int) -> _Figures:
    """All figures of one spectrum: (k,) falling float64 eigenvalues out of ``dimension``, trace or NaN."""
    if values[0] == 0:
        nan = float("nan")
        return _Figures(0.0, 0.0, 0.0, 0.0, 0.0, nan, nan)
    shares = _shares(values, trace)
    rest, missing = max(1 - shares.sum(), 0.0), max(dimension - len(values), 0)
    squares = float(np.square(shares).sum())
    entropy = -np.sum(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0))
    if missing and rest > 0:
        squares += rest**2 / missing
        entropy -= rest * np.log(rest / missing)
    cumulative = np.cumsum(shares)
    above = values > values[0] * np.finfo(np.float32).eps * dimension
    return _Figures(
        effective_rank=float(1 / squares),
        entropy_rank=float(np.exp(entropy)),
        rank_90=count_directions(cumulative, 0.90),
        rank_99=count_directions(cumulative, 0.99),
        numerical_rank=float(above.sum()),
        top_share=float(shares[0]),
        covered=float("nan") if np.isnan(trace) else float(shares.sum()),
    )
