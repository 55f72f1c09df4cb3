"""Spectrum: how many directions of a module's input the task really uses (read off stage 1 of TLoRA)."""

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
from tlora.models.module_result import ModuleResult
from tlora.models.targets import Target
from tlora.results import Meta


class _Figures(NamedTuple):
    """What one spectrum says, in the order of the columns of `Spectrum.to_frame`."""

    effective_rank: float
    entropy_rank: float
    rank_90: float
    rank_95: float
    rank_99: float
    numerical_rank: float
    condition_number: float
    top_share: float
    covered: float


@dataclass(frozen=True, repr=False, eq=False)
class Spectrum(ModuleResult):
    """Eigenvalues of the input covariance of each module, or of ``M^T M`` for the matrix of a subspace kind.

    A spectrum may be truncated: the first ``k`` eigenvalues and the trace. Its rest ``t``, the trace less
    the known eigenvalues, is then taken as spread evenly over the remaining dimensions. No other rest has
    as high an effective rank, so that ``effective_rank`` and ``entropy_rank`` are upper bounds, close
    where ``covered`` is near 1. Where the trace is unknown (NaN: a subspace kind whose matrix is never
    formed), every figure is of the known part: a lower bound for the ranks (the known part, scaled to sum
    to one, majorises the whole), an upper one for ``top_share``.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    eigenvalues : dict of (k,) float32 tensor
        Falling, none negative, by full module name; squared units of the activations.
        Modules that read the same input share one tensor.
    traces : dict of float
        Sum of all eigenvalues, the unknown ones included; NaN where it is not known.
    dimensions : dict of int
        How many eigenvalues can be other than zero, the unknown ones included: the width of the input, or
        the tokens that were seen, each sample's mean taken off, where these are fewer and known.
    inputs : dict of str
        First module that has the same spectrum because it reads the same input (itself, for most).
    kind : str
        ``"covariance"``, or the key of a subspace kind.
    meta : Meta
        Model, task, sample count.

    References
    ----------
    Participation ratio: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement",
    2017.
    Entropy: Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007, definition 1,
    here of eigenvalues (variances) where the paper takes singular values.
    """

    eigenvalues: dict[str, Tensor]
    traces: dict[str, float]
    dimensions: dict[str, int]
    inputs: dict[str, str]
    kind: str
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "input": "first module that reads the same input",
        "dimension": "how many eigenvalues can be other than zero",
        "trace": "sum of all eigenvalues, squared units of the activations; NaN where unknown",
        "effective_rank": "participation ratio, (sum l)^2 / sum l^2",
        "entropy_rank": "exp(H), H the entropy in nats of l / sum l",
        "rank_90": "directions that hold 90 % of the variance; NaN where they are more than are known",
        "rank_95": "the same for 95 %",
        "rank_99": "the same for 99 %",
        "numerical_rank": "known eigenvalues above float32 rounding",
        "condition_number": "largest eigenvalue over the smallest above float32 rounding",
        "top_share": "share of the trace that the first direction holds",
        "covered": "share of the trace that the known eigenvalues hold; NaN where the trace is unknown",
    }

    @cached_property
    def _figures(self) -> dict[str, _Figures]:
        found: dict[str, _Figures] = {}
        for name, source in self.inputs.items():
            if source not in found:
                found[source] = _figures(
                    self.eigenvalues[source].double().numpy(), self.traces[source], self.dimensions[source]
                )
            found[name] = found[source]
        return found

    @property
    def effective_rank(self) -> dict[str, float]:
        """Participation ratio ``(sum l)^2 / sum l^2``: 1 for one direction, ``d`` for white noise."""
        return {name: figures.effective_rank for name, figures in self._figures.items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        known = pd.DataFrame(
            self.module_columns()
            | {
                "input": list(self.inputs.values()),
                "dimension": list(self.dimensions.values()),
                "trace": list(self.traces.values()),
            }
        )
        figures = pd.DataFrame([self._figures[name] for name in self.names], columns=_Figures._fields)
        return pd.concat([known, figures], axis=1)

    def curves(self, modules: str | Iterable[str] | None = None) -> pd.DataFrame:
        """The spectra themselves: one row a module and direction.

        Parameters
        ----------
        modules : iterable of str, optional
            Full module names; all modules when left out.

        Returns
        -------
        pandas.DataFrame
            ``module``, ``layer``, ``projection``; ``direction`` from 1; ``eigenvalue``; ``share`` of the
            trace; ``cumulative`` share of the first directions up to this one. Where the trace is
            unknown, shares are of the known part.

        Raises
        ------
        KeyError
            If a module has no spectrum here.
        ValueError
            If ``modules`` is empty.
        """
        wanted = chosen_modules(self, modules)
        sizes = [len(self.eigenvalues[name]) for name in wanted]
        shares = [self._shares(name) for name in wanted]
        targets = [self.targets[name] for name in wanted]
        return pd.DataFrame(
            {
                "module": np.repeat(np.array(wanted, dtype=object), sizes),
                "layer": np.repeat([target.layer for target in targets], sizes),
                "projection": np.repeat(np.array([target.projection for target in targets], dtype=object), sizes),
                "direction": np.concatenate([np.arange(1, size + 1) for size in sizes]),
                "eigenvalue": np.concatenate([self.eigenvalues[name].numpy() for name in wanted]),
                "share": np.concatenate(shares),
                "cumulative": np.concatenate([np.cumsum(values) for values in shares]),
            }
        )

    def _shares(self, name: str) -> np.ndarray:
        return _shares(self.eigenvalues[name].double().numpy(), self.traces[name])

    def _summary(self) -> str:
        ranks = self.effective_rank
        low, high = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        span = f"{ranks[low]:.3g} ({low}) to {ranks[high]:.3g} ({high})"
        return f"{self.kind}, {len(ranks)} modules, effective rank {span}"


def spectrum(
    covariances: Mapping[str, Covariance], inputs: Mapping[str, str], targets: Mapping[str, Target], meta: Meta
) -> Spectrum:
    """Eigenvalues of the covariance of every module; each shared covariance is decomposed once.

    Parameters
    ----------
    covariances : mapping of Covariance
        By the name of the first module that reads the input.
    inputs : mapping of str
        For each module the key into ``covariances``.
    targets : mapping of Target
        What each module is.
    meta : Meta
        Of the calibration.

    Returns
    -------
    Spectrum
        Of kind ``"covariance"``; all eigenvalues that can be other than zero and that the covariance knows.

    Raises
    ------
    ValueError
        If a covariance holds NaN.
    """
    sizes = {name: max(1, min(targets[name].d_in, c.rank_bound)) for name, c in covariances.items()}
    values = {name: _decompose(name, c)[: sizes[name]].clone() for name, c in covariances.items()}
    return Spectrum(
        targets=dict(targets),
        eigenvalues={name: values[first] for name, first in inputs.items()},
        traces={name: covariances[first].trace for name, first in inputs.items()},
        dimensions={name: sizes[first] for name, first in inputs.items()},
        inputs=dict(inputs),
        kind="covariance",
        meta=meta,
    )


def _decompose(name: str, covariance: Covariance) -> Tensor:
    try:
        return sort_descending(name, covariance.eigenvalues())
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"the covariance of {name} holds NaN or infinity: look in its inputs") from error


def sort_descending(name: str, values: Tensor) -> Tensor:
    """Float32 on the CPU, falling, and what rounding left below zero set to zero."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"the spectrum of {name} holds NaN or infinity: look for them in its inputs and weight")
    return values.detach().to("cpu", torch.float32).sort(descending=True).values.clamp(min=0)


def _shares(values: np.ndarray, trace: float) -> np.ndarray:
    """Shares of the trace; where it is unknown, or rounded below the sum of the eigenvalues, of that sum."""
    total = np.fmax(values.sum(), trace)
    return values / total if total > 0 else np.zeros_like(values)


def directions_for(cumulative: np.ndarray, share: float) -> float:
    """Directions that hold a share, by the cumulative shares: 0 of a spectrum of zeros, NaN of more than are known."""
    if cumulative[-1] == 0:
        return 0.0
    reached = cumulative >= share - 1e-6  # float32: shares closer than rounding are the same share
    return float(np.argmax(reached) + 1) if reached.any() else float("nan")


def chosen_modules(spectrum: Spectrum, modules: str | Iterable[str] | None) -> list[str]:
    """Full names of the modules that are meant; all by default.

    Raises
    ------
    KeyError
        If one has no spectrum here.
    ValueError
        If there are none.
    """
    wanted = spectrum.names if modules is None else [modules] if isinstance(modules, str) else list(modules)
    if not wanted:
        raise ValueError("modules is empty: name at least one, or leave it out for all")
    if unknown := [name for name in wanted if name not in spectrum.eigenvalues]:
        raise KeyError(f"no spectrum of {unknown[0]!r}: choose from .names, e.g. {spectrum.names[0]!r}")
    return wanted


def _figures(values: np.ndarray, trace: float, dimension: int) -> _Figures:
    """All figures of one spectrum: (k,) falling float64 eigenvalues out of ``dimension``, trace or NaN."""
    if values[0] == 0:
        nan = float("nan")
        return _Figures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, nan, nan, nan)
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
        rank_90=directions_for(cumulative, 0.90),
        rank_95=directions_for(cumulative, 0.95),
        rank_99=directions_for(cumulative, 0.99),
        numerical_rank=float(above.sum()),
        condition_number=float(values[0] / values[above][-1]),
        top_share=float(shares[0]),
        covered=float("nan") if np.isnan(trace) else float(shares.sum()),
    )
