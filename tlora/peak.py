"""The most memory that a block of code held."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures a ``with`` block: CUDA memory allocated where the device is CUDA, else the process's resident memory.

    Parameters
    ----------
    device : torch.device
        Where the model is.

    Attributes
    ----------
    bytes : int or None
        After the block: the peak, with what was there before it. None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self._told = True

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            _RESET.write_text("5")  # see proc(5): sets the peak back to what is resident now
        except OSError:
            self._told = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._told:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
            self.bytes = 1024 * int(found[1]) if found else None
