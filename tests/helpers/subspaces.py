"""Subspaces of several kinds on a tiny model with held-out samples, and random ones."""

from __future__ import annotations

import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tlora.calibration.sensitivity import Sensitivity
from tlora.subspaces.subspaces import Subspaces

KINDS = ("wc", "g", "random")

RANKS = (1, 4, 8)


def prepared(family):
    """A tiny model, subspaces of three kinds, and held-out samples of uneven length."""
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=(20, 15, 25))], gradient=True, progress=False)
    subspaces = {k: tlora.task_subspaces(model, calibration, max_rank=8, kind=k, progress=False) for k in KINDS}
    return model, calibration, subspaces, tiny_batch(model, lengths=(7, 12, 5, 9), seed=1)


def random_subspaces(modules: Sensitivity, kind: str, generator: torch.Generator) -> Subspaces:
    """Bases of rank 64 and width 256, whatever the modules' widths are: the workbench does not look at the bases."""
    bases = {n: torch.linalg.qr(torch.randn(256, 64, generator=generator)).Q.T for n in modules.names}
    falling = 1 / torch.arange(1, 65).float()
    each = lambda values: {n: values.clone() for n in bases}  # noqa: E731
    return Subspaces(
        targets=modules.targets,
        kind=kind,
        max_rank=64,
        bases=bases,
        singular_values=each(falling),
        numerical_rank=dict.fromkeys(bases, 64),
        row_variance=each(falling),
        traces=dict.fromkeys(bases, float(2 * falling.sum())),
        fingerprints=each(torch.ones(16)),
        meta=modules.meta,
    )
