"""Calibrations that keep everything, and whether two are the same."""

from __future__ import annotations

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch
from tlora.calibration.calibration import Calibration

SKETCH = {"covariance": "sketch", "sketch_size": 12}


def batches(model, n=4, **kwargs):
    return [tiny_batch(model, seed=seed, **kwargs) for seed in range(n)]


def calibrate(model, batches, **kwargs):
    return tlora.calibrate(model, batches, gradient=True, progress=False, **kwargs)


def assert_close(one: Calibration, other: Calibration, tolerance=1e-5):
    assert one.names == other.names
    for name in one.names:
        for kept in ("covariance", "gradient"):
            a, b = (getattr(each, kept)[name].dense() for each in (one, other))
            assert float((a - b).norm()) <= tolerance * float(b.norm()), (kept, name)
        assert one.covariance[name].trace == pytest.approx(other.covariance[name].trace, rel=tolerance)
        assert one.covariance[name].rank_bound == other.covariance[name].rank_bound
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample, rtol=tolerance, atol=0)
    assert one.sample_fingerprints.tolist() == other.sample_fingerprints.tolist()
    assert one.meta.samples == other.meta.samples == len(one.sensitivity.per_sample)
