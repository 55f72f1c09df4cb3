"""The random state that a process has one of: used by one thread at a time, and put back."""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator

import torch

_TURN = threading.RLock()


@contextlib.contextmanager
def temporary_seed(seed: int | None = None) -> Iterator[None]:
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


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Without autocast inside, and new tensors of float32 unless something else is said; also a decorator."""
    accelerator, usual = torch.accelerator.current_accelerator(), torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.set_default_dtype, usual)
        torch.set_default_dtype(torch.float32)
        yield


def module_seed(seed: int, name: str) -> int:
    """A seed for one module that does not depend on which others are there."""
    return (int(seed) * 1_000_003 + zlib.crc32(name.encode())) % (1 << 63)
