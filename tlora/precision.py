"""What is computed has the precision that it needs, whatever the model's own or what is set around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

_SHORT = (torch.float16, torch.bfloat16)


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


@contextlib.contextmanager
def heads_in_float32(model: nn.Module) -> Iterator[None]:
    """Train the modules that are saved whole beside an adapter in float32, though the base has fewer bits.

    Small steps of AdamW, and those of its second moments, are rounded away in bfloat16; PEFT sees to ``A`` and ``B``
    alone. What goes into a module and comes out keeps its type, and in the end so do the parameters.
    """
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    leaves = {m for w in wrappers for m in w.modules_to_save.modules() if not any(m.children())}
    short = {m: [p for p in m.parameters() if p.requires_grad and p.dtype in _SHORT] for m in leaves}
    kept = [(parameter, parameter.dtype) for found in short.values() for parameter in found]
    with contextlib.ExitStack() as stack:
        for module, found in short.items():
            if found:
                stack.callback(module.register_forward_pre_hook(lambda _, given: _cast(given, torch.float32)).remove)
                usual = found[0].dtype
                stack.callback(module.register_forward_hook(lambda _, __, out, usual=usual: _cast(out, usual)).remove)
        for parameter, dtype in kept:
            parameter.data = parameter.data.float()
            stack.callback(_put_back, parameter, dtype)
        yield


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Tensors of numbers in a type, alone or among the arguments of a module."""
    if isinstance(values, tuple):
        return tuple(_cast(value, dtype) for value in values)
    return values.to(dtype) if isinstance(values, torch.Tensor) and values.is_floating_point() else values


def _put_back(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    parameter.grad = None
    parameter.data = parameter.data.to(dtype)
