"""What every test of a picture shares."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")
