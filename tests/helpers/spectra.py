"""Spectra and covariances that are constructed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from tlora.calibration.covariance import Covariance, DenseCovariance
from tlora.calibration.spectrum import Spectrum
from tlora.results import Meta


def of(values, trace=None, dimension=None) -> Spectrum:
    """The spectrum of one module ``m`` with the given eigenvalues."""
    values = torch.tensor(values, dtype=torch.float32)
    return Spectrum(
        {"m": values},
        {"m": float(values.sum()) if trace is None else trace},
        {"m": dimension or len(values)},
        {"m": "m"},
        {"m": 0},
        {"m": "q_proj"},
        "covariance",
        Meta(),
    )


def covariance(seed: int, d: int = 12, tokens: int = 40, decay: float = 1.0) -> Covariance:
    x = np.random.default_rng(seed).normal(size=(tokens, d)) * np.arange(1, d + 1) ** -decay
    return DenseCovariance(torch.tensor(x.T @ x, dtype=torch.float32), rank_bound=tokens)


def calibration(covariances: dict[str, Covariance]) -> SimpleNamespace:
    names = list(covariances)
    return SimpleNamespace(
        names=names,
        covariance=covariances,
        shared={n: next(m for m in names if covariances[m] is covariances[n]) for n in names},
        sensitivity=SimpleNamespace(
            shapes={n: (6, len(covariances[n].dense())) for n in names},
            layers=dict.fromkeys(names, 3),
            projections={n: n.rsplit(".", 1)[-1] for n in names},
        ),
        meta=Meta(model="tiny", samples=4),
    )


def naive_ranks(values: np.ndarray) -> tuple[float, float]:
    p = [v / sum(values) for v in values if v > 0]
    return sum(values) ** 2 / sum(v * v for v in values), np.exp(-sum(q * np.log(q) for q in p))
