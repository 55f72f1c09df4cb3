"""The time and the memory that something takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from tlora.utils.peak_memory import PeakMemory

Result = TypeVar("Result")


def now(device: str) -> float:
    """Seconds of processor time of this process; on a card those of the clock, once its kernels are done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Stages:
    """The stages of a run: ``found`` has the seconds and the bytes of each.

    On a card the bytes are the most that PyTorch allocated; on a CPU the peak of the process's resident memory, less
    what it held when this was made.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.before = psutil.Process().memory_info().rss if device == "cpu" else 0
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        """What the work returns."""
        gc.collect()
        started = now(self.device)
        with PeakMemory(torch.device(self.device)) as peak:
            result = work()
        self.found[stage] = {"seconds": now(self.device) - started, "bytes": (peak.bytes or 0) - self.before}
        return result
