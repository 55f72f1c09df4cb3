"""Seeds, and settings that determine exact results: set temporarily, then restored."""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator

import torch

_TURN = threading.RLock()


@contextlib.contextmanager
def temporary_seed(seed: int | None = None) -> Iterator[None]:
    """Seed torch's global generators inside, and restore their state afterwards.

    Without a seed the random numbers are discarded. Threads wait for each other: the generators are global.
    """
    with _TURN, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Disable autocast inside, and make float32 the default dtype; also a decorator."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float32)
        yield


def module_seed(seed: int, name: str) -> int:
    """A seed for one module that does not depend on the other modules."""
    return (int(seed) * 1_000_003 + zlib.crc32(name.encode())) % (1 << 63)
