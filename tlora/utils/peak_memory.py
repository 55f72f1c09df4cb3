"""The peak of the memory that a block of code holds."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measure a ``with`` block: CUDA memory allocated if the device is CUDA, else the process's resident memory.

    Parameters
    ----------
    device : torch.device
        Where the model is.

    Attributes
    ----------
    bytes : int or None
        After the block: the peak, including what was held before it. None if the system does not report it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self._is_reset = True

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            RESET.write_text("5")  # see proc(5): sets the peak to what is resident now
        except OSError:
            self._is_reset = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._is_reset:
            peak = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
            self.bytes = 1024 * int(peak[1]) if peak else None
