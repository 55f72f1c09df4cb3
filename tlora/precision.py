"""What is computed has the precision that it needs, whatever the model's own or what is set around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.utils._pytree import tree_map

_SHORT = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def heads_in_float32(model: nn.Module) -> Iterator[None]:
    """Train the modules that are saved whole, as a head is, in float32, though the base has fewer bits.

    Small steps of AdamW, and those of its second moments, are rounded away in bfloat16; PEFT sees to ``A`` and ``B``
    alone. What goes into a module and comes out keeps its type, and in the end so does what it holds.
    """
    heads = [copy for module in model.modules() for copy in _copies(module)]
    usual = [next((p.dtype for p in h.parameters() if p.requires_grad and p.dtype in _SHORT), None) for h in heads]
    with contextlib.ExitStack() as stack:
        for head, dtype in zip(heads, usual, strict=True):  # two may have one tied weight, which is widened once
            if dtype is not None:
                _widen(head, dtype, stack)
        yield


def _copies(module: nn.Module) -> list[nn.Module]:
    """What PEFT trains in the place of a whole module, by adapter."""
    if isinstance(module, ModulesToSaveWrapper):
        return list(module.modules_to_save.values())
    return list(module.ln_tuning_layers.values()) if isinstance(module, LNTuningLayer) else []


def _widen(module: nn.Module, usual: torch.dtype, stack: contextlib.ExitStack) -> None:
    """Have a module compute in float32 until the stack is closed, between inputs and outputs of its usual type."""

    def cast_inputs(_: Any, args: Any, kwargs: Any) -> Any:
        return _cast(args, torch.float32), _cast(kwargs, torch.float32)

    stack.callback(module.register_forward_pre_hook(cast_inputs, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(lambda _, __, out: _cast(out, usual)).remove)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in _SHORT:
            stack.callback(_put_back, tensor, tensor.dtype)
            tensor.data = tensor.data.float()


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """The same, with all tensors of numbers in a type."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, values)


def _put_back(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    tensor.grad = None
    tensor.data = tensor.data.to(dtype)
