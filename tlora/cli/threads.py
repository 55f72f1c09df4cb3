"""How long a thread of torch that has nothing to do keeps its core."""

from __future__ import annotations

import os

SPINS = "1000"
"""Rounds that a thread waits in before it sleeps, of OpenMP's own 300,000.

With 1,000 a training step takes 1.18 s instead of 1.04 on a quiet machine, and 7 s instead of 33 beside three other
processes (`benchmarks.speed.busy`: docs/results/measurements.md).
"""


def limit_spinning() -> None:
    """Have waiting threads leave their core to other processes sooner; call this before torch is imported.

    The OpenMP in torch's packages for Linux reads ``GOMP_SPINCOUNT`` once, when torch is loaded. What the user has set
    stays; ``OMP_WAIT_POLICY`` too, over which ``GOMP_SPINCOUNT`` would win.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
