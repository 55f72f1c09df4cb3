"""Spectra and covariances that are constructed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.helpers.targets import named, target
from tlora.calibration.covariance import Covariance, DenseCovariance
from tlora.calibration.spectrum import Spectrum, spectrum
from tlora.results import Meta


def single_spectrum(values, trace=None, dimension=None) -> Spectrum:
    """The spectrum of one module ``m`` with the given eigenvalues."""
    values = torch.tensor(values, dtype=torch.float32)
    return Spectrum(
        named(target("m")),
        {"m": values},
        {"m": float(values.sum()) if trace is None else trace},
        {"m": dimension or len(values)},
        {"m": "m"},
        "covariance",
        Meta(),
    )


def covariance(seed: int, d: int = 12, tokens: int = 40, decay: float = 1.0) -> Covariance:
    x = np.random.default_rng(seed).normal(size=(tokens, d)) * np.arange(1, d + 1) ** -decay
    return DenseCovariance(torch.tensor(x.T @ x, dtype=torch.float32), rank_bound=tokens)


def spectrum_of(covariances: dict[str, Covariance]) -> Spectrum:
    """The spectrum of modules with these covariances; those with one object share it."""
    first = {n: next(m for m, other in covariances.items() if other is c) for n, c in covariances.items()}
    targets = named(*(target(n, 3, n.rsplit(".", 1)[-1], (6, len(c.total))) for n, c in covariances.items()))
    once = {name: covariances[name] for name in dict.fromkeys(first.values())}
    return spectrum(once, first, targets, Meta(model="tiny", samples=4))


def truncated(whole: Spectrum, k: int) -> Spectrum:
    """The first eigenvalues, beside the trace of all."""
    first = {source: whole.eigenvalues[source][:k].clone() for source in whole.inputs.values()}
    return replace(whole, eigenvalues={name: first[source] for name, source in whole.inputs.items()})


def naive_ranks(values: np.ndarray) -> tuple[float, float]:
    p = [v / sum(values) for v in values if v > 0]
    return sum(values) ** 2 / sum(v * v for v in values), np.exp(-sum(q * np.log(q) for q in p))
