"""The random state that a process has one of: used by one thread at a time, and put back."""

from __future__ import annotations

import contextlib
import random
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
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


class RandomState:
    """The state of all global generators, for one of several trainings that take turns."""

    def __init__(self) -> None:
        self._kept = _generators()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Go on from this state inside, and keep what becomes of it; the caller's own state is as before afterwards."""
        before = _generators()
        _set_generators(self._kept)
        try:
            yield
        finally:
            self._kept = _generators()
            _set_generators(before)


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_generators(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


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
