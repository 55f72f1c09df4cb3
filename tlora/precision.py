"""Products and sums of our own have the precision that they are asked for, whatever is set around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


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
