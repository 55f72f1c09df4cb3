"""The time that something takes."""

from __future__ import annotations

import time

import torch


def now(device: str) -> float:
    """Seconds of processor time of this process; on a card those of the clock, once its kernels are done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
