"""Subspaces of several kinds on a tiny model, and held-out samples."""

from __future__ import annotations

import tlora
from tests.helpers.models import tiny_batch, tiny_model

KINDS = ("wc", "g", "random")

RANKS = (1, 4, 8)


def prepared(family):
    """A tiny model, subspaces of three kinds, and held-out samples of uneven length."""
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=(20, 15, 25))], gradient=True, progress=False)
    subspaces = {k: tlora.task_subspaces(model, calibration, max_rank=8, kind=k, progress=False) for k in KINDS}
    return model, calibration, subspaces, tiny_batch(model, lengths=(7, 12, 5, 9), seed=1)
