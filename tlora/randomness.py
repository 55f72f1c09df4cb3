"""The random state that a process has one of: used by one thread at a time, and put back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_TURN = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """Seed whatever draws from torch's global generators inside; their state is as before afterwards.

    Parameters
    ----------
    seed : int, optional
        None where what is drawn is thrown away.

    Notes
    -----
    Threads wait for each other here: in two at once, each would draw what the other's seed gives.
    """
    with _TURN, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield
