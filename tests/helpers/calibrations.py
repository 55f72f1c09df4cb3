"""Calibrations that keep everything, and whether two are the same."""

from __future__ import annotations

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tlora.calibration.calibration import Calibration

SKETCH = {"covariance": "sketch", "sketch_size": 12}


def batches(model, n=4, **kwargs):
    return [tiny_batch(model, seed=seed, **kwargs) for seed in range(n)]


def calibrate(model, batches, **kwargs):
    return tlora.calibrate(model, batches, gradient=True, fisher=True, progress=False, **kwargs)


def assert_close(one: Calibration, other: Calibration, tolerance=1e-5):
    assert one.names == other.names
    for name in one.names:
        a, b = (each.gradient[name].dense() for each in (one, other))
        assert float((a - b).norm()) <= tolerance * float(b.norm()), name
        kept = (
            [each.covariance[name], each.covariance[name].second_moment(), each.fisher[name]] for each in (one, other)
        )
        for a, b in zip(*kept, strict=True):
            assert float((a.dense() - b.dense()).norm()) <= tolerance * float(b.dense().norm()), name
            assert a.trace == pytest.approx(b.trace, rel=tolerance)
            assert a.rank_bound == b.rank_bound
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample, rtol=tolerance, atol=0)
    assert one.sample_fingerprints.tolist() == other.sample_fingerprints.tolist()
    assert one.meta.samples == other.meta.samples == len(one.sensitivity.per_sample)


def calibration(family="llama", seed=0, samples=8, **options):
    lengths = (9, 12, 7, 10)
    given = [tiny_batch(family, seed=seed + n, lengths=lengths) for n in range(samples // 4)]
    return tlora.calibrate(tiny_model(family), given, progress=False, **options)
