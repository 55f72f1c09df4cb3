"""Run a model's own code on tensors without data, to count the memory and operations that it would need."""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

PLACE = re.compile(r"(idx|index|_id|layer_num|layer_number)$")
"""Names of settings that hold the index of a block."""

META = torch.device("meta")
VALUE = torch.ops.aten._local_scalar_dense.default
FILLS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
ATTENTION = functional.scaled_dot_product_attention
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Simulation(TorchDispatchMode):
    """Count the memory and operations of code inside `simulation_mode`.

    Every tensor is created on torch's ``meta`` device. Values read on the host (``item``, ``bool``) are zero, so no
    padding is skipped, no number is infinite, and no layer is dropped at random.

    Attributes
    ----------
    now : int
        Bytes of storages that operations created and that are still alive.
    peak : int
        The maximum so far; may be reset.
    flops : int
        Floating-point operations of products so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}
        self._known: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count its result."""
        kwargs = kwargs or {}
        if func in FILLS:  # there are no values to fill in
            return args[0]
        if func is VALUE and args[0].device == META:
            return torch.zeros((), dtype=args[0].dtype).item()
        key = (func, _argument_key(args), _argument_key(tuple(kwargs.items()))) if _returns_new_memory(func) else None
        if key in self._known:
            result, flops = self._known[key]
            result = _empty_like(result)
        else:
            result, flops = _run(func, args, kwargs)
            if key is not None:
                self._known[key] = _empty_like(result), flops
        self.flops += flops
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._untrack, storage._cdata)

    def _untrack(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@cache
def _returns_new_memory(func: Any) -> bool:
    """Whether an operation changes no tensor and returns none that shares memory with another."""
    return not (func.is_view or func._schema.is_mutable or func is torch.ops.aten._unsafe_view.default)


def _argument_key(value: Any) -> Any:
    """The properties of an argument that determine the shapes of the result."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_argument_key, value))
    return type(value), value


def _run(func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
    """Run an operation without data; count its floating-point operations if it is a product."""
    args = tuple(map(_without_data, args))
    if "device" in kwargs:
        kwargs = kwargs | {"device": META}
    if func.__name__ == "_grouped_mm.default":  # torch implements it without data for bfloat16 alone
        result = func(*tree_map(_short, args), **tree_map(_short, kwargs)).to(args[0].dtype)
    else:
        result = func(*args, **kwargs)
    count = flop_registry.get(func._overloadpacket)
    return result, 0 if count is None else count(*args, **kwargs, out_val=result)


def _empty_like(value: Any) -> Any:
    """New tensors of the same shapes, with memory of their own."""
    if isinstance(value, tuple | list):
        return type(value)(map(_empty_like, value))
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    return value


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.device == META else torch.empty_like(value, device=META)
    return [_without_data(one) for one in value] if isinstance(value, list) and value else value


def _short(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **kwargs: Any
) -> Tensor:
    """Use the CPU's flash kernel whenever the CPU would; torch does not choose it for tensors without data."""
    options = {"dropout_p": 0.0, "is_causal": False}
    options |= dict(zip(options, more, strict=False)) | kwargs
    if not chooses_flash(query, key, value, attn_mask, **options):
        return ATTENTION(query, key, value, attn_mask, *more, **kwargs)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    arguments = (query, key, value, options["dropout_p"], options["is_causal"])
    result: Tensor = FLASH(*arguments, attn_mask=attn_mask, scale=options.get("scale"))[0]
    return result


def chooses_flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **options: Any) -> bool:
    """Whether torch would choose its flash kernel on the CPU for tensors of these shapes.

    The rules differ between versions of torch: whether one key head for all queries suits the kernel, for example. So
    torch itself is asked.
    """
    with _disable_current_modes():  # the simulation would take the data away
        mask = None if attn_mask is None else _on_cpu(attn_mask)
        choice = torch._fused_sdp_choice(_on_cpu(query), _on_cpu(key), _on_cpu(value), mask, **options)
    return choice == int(SDPBackend.FLASH_ATTENTION.value)


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return a CPU tensor of the same shape and type, all of whose rows are one row in memory."""
    row = torch.empty(tensor.shape[-1:], dtype=tensor.dtype)
    return row.expand(tensor.shape).requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def simulation_mode() -> Iterator[Simulation]:
    """Create tensors with shapes but no data inside the block, so nothing is computed, whatever their size.

    Operations choose their kernels as on the CPU. Attention is therefore a matrix of tokens by tokens only if torch's
    flash kernel does not take it, as with dropout.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # its timing would change the peak, and it takes a third of the time
    functional.scaled_dot_product_attention = _attention
    try:
        with Simulation() as simulation:
            yield simulation
    finally:
        functional.scaled_dot_product_attention = ATTENTION
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of a list with the same class, settings and shapes of weights: the list's name, itself, and their keys."""

    place: str
    parent: nn.ModuleList
    keys: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """Full names of the blocks."""
        return [f"{self.place}.{key}" for key in self.keys]


def group_blocks(model: nn.Module) -> list[Blocks]:
    """Group the blocks of a model's outermost lists by class, settings and weights, in the model's order."""
    result: list[Blocks] = []
    inside: tuple[str, ...] = ()
    for place, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not place.startswith(inside or ("\0",)):
            inside = (*inside, f"{place}.")
            groups: dict[Any, Blocks] = defaultdict(lambda place=place, module=module: Blocks(place, module))  # type: ignore[misc]
            for key, block in module._modules.items():
                assert block is not None
                groups[_signature(block)].keys.append(key)
            result += groups.values()
    return result


def _signature(block: nn.Module) -> Any:
    weights = tuple((name, weight.shape, weight.dtype) for name, weight in block.named_parameters())
    return type(block), weights, tuple((name, *_settings(module)) for name, module in block.named_modules())


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The plain settings of a module, without its index in the model."""
    for name, value in vars(module).items():
        if isinstance(value, bool | int | float | str | None) and not PLACE.search(name):
            yield name, value


@contextlib.contextmanager
def keep_blocks(kept: Mapping[Blocks, int]) -> Iterator[None]:
    """Inside the block, the model runs only the first few of each group of blocks, under their own names."""
    whole = {blocks.parent: blocks.parent._modules for blocks in kept}
    names = {parent: set[str]() for parent in whole}
    for blocks, count in kept.items():
        names[blocks.parent].update(blocks.keys[:count])
    try:
        for parent, modules in whole.items():
            parent._modules = {key: block for key, block in modules.items() if key in names[parent]}
        yield
    finally:
        for parent, modules in whole.items():
            parent._modules = modules
