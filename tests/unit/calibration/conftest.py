"""What the tests of this folder share."""

from __future__ import annotations

import pytest


@pytest.fixture
def small_sketches(monkeypatch):
    monkeypatch.setattr("tlora.calibration.gradient.SKETCH_ABOVE", 1000)
    monkeypatch.setattr("tlora.calibration.gradient.SKETCH_RANK", 8)
