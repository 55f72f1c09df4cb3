"""A model's own code on tensors that have shapes and no data: what would be alive, and what would be computed."""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

PLACE = re.compile(r"(idx|index|_id|layer_num|layer_number)$")
"""Names of the settings that say which of the blocks one is."""

META = torch.device("meta")
VALUE = torch.ops.aten._local_scalar_dense.default
FILLS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
ATTENTION = functional.scaled_dot_product_attention
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Simulation(TorchDispatchMode):
    """Counts what operations make and compute, inside of `simulation_mode`.

    Every tensor is made on torch's ``meta`` device. A question about a value (``item``, ``bool``) is answered by zero:
    there is no padding that could be skipped, no number is infinite, no layer is dropped at random.

    Attributes
    ----------
    now : int
        Bytes of the storages that operations made and that are still alive.
    peak : int
        The most so far; may be set back.
    flops : int
        Floating-point operations of products so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}
        self._known: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it made."""
        kwargs = kwargs or {}
        if func in FILLS:  # with values, of which there are none
            return args[0]
        if func is VALUE and args[0].device == META:
            return torch.zeros((), dtype=args[0].dtype).item()
        key = (func, _described(args), _described(tuple(kwargs.items()))) if _makes_its_own(func) else None
        if key in self._known:
            made, flops = self._known[key]
            made = _anew(made)
        else:
            made, flops = _run(func, args, kwargs)
            if key is not None:
                self._known[key] = _anew(made), flops
        self.flops += flops
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def measure(self, act: Callable[[], object]) -> tuple[int, int]:
        """Bytes that ``act`` needs at most beside what is there before, and the operations of its products.

        Parameters
        ----------
        act : callable
            Run once; what it returns is let go.
        """
        before, flops = self.now, self.flops
        self.peak = before
        act()
        return self.peak - before, self.flops - flops


@cache
def _makes_its_own(func: Any) -> bool:
    """Whether an operation changes no tensor, and returns none that shares memory with another."""
    return not (func.is_view or func._schema.is_mutable or func is torch.ops.aten._unsafe_view.default)


def _described(value: Any) -> Any:
    """What of an argument decides on the shapes that come out."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_described, value))
    return type(value), value


def _run(func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
    """What an operation returns without data, and the floating-point operations of a product."""
    args = tuple(map(_without_data, args))
    if "device" in kwargs:
        kwargs = kwargs | {"device": META}
    if func.__name__ == "_grouped_mm.default":  # without data torch has it for bfloat16 alone
        made = func(*tree_map(_short, args), **tree_map(_short, kwargs)).to(args[0].dtype)
    else:
        made = func(*args, **kwargs)
    count = flop_registry.get(func._overloadpacket)
    return made, 0 if count is None else count(*args, **kwargs, out_val=made)


def _anew(made: Any) -> Any:
    """Tensors of the same shapes, with memory of their own."""
    if isinstance(made, tuple | list):
        return type(made)(map(_anew, made))
    if isinstance(made, Tensor):
        return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=META)
    return made


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.device == META else torch.empty_like(value, device=META)
    return [_without_data(one) for one in value] if isinstance(value, list) and value else value


def _short(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **kwargs: Any
) -> Tensor:
    """By the CPU's flash kernel where the CPU would take it, which torch does not ask itself without data."""
    asked = dict(zip(("dropout_p", "is_causal"), more, strict=False)) | kwargs
    dropout, causal = asked.get("dropout_p", 0.0), asked.get("is_causal", False)
    learnt = attn_mask is not None and attn_mask.requires_grad
    if dropout > 0 or learnt or query.ndim != 4 or query.shape[-1] != value.shape[-1]:
        return ATTENTION(query, key, value, attn_mask, *more, **kwargs)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    found: Tensor = FLASH(query, key, value, dropout, causal, attn_mask=attn_mask, scale=asked.get("scale"))[0]
    return found


@contextlib.contextmanager
def simulation_mode() -> Iterator[Simulation]:
    """Tensors made inside of the block have shapes and no data, whatever their size: nothing is computed.

    Notes
    -----
    Operations choose their kernels as on the CPU, so attention is never a matrix of tokens by tokens, which holds for
    GPUs too.
    """
    collects = gc.isenabled()
    gc.disable()  # whose moment would decide on the peak, and which takes a third of the time
    functional.scaled_dot_product_attention = _attention
    try:
        with Simulation() as simulation:
            yield simulation
    finally:
        functional.scaled_dot_product_attention = ATTENTION
        if collects:
            gc.enable()


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a list that are alike: of one class, with weights of the same shapes and the same settings.

    Attributes
    ----------
    place : str
        Full name of the list.
    parent : torch.nn.ModuleList
        The list.
    keys : list of str
        The names in it.
    """

    place: str
    parent: nn.ModuleList
    keys: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """Full names of the blocks."""
        return [f"{self.place}.{key}" for key in self.keys]


def group_blocks(model: nn.Module) -> list[Blocks]:
    """The blocks of a model's outermost lists, those that are alike together, in the model's order."""
    found: list[Blocks] = []
    inside: tuple[str, ...] = ()
    for place, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not place.startswith(inside or ("\0",)):
            inside = (*inside, f"{place}.")
            groups: dict[Any, Blocks] = defaultdict(lambda place=place, module=module: Blocks(place, module))  # type: ignore[misc]
            for key, block in module._modules.items():
                assert block is not None
                groups[_signature(block)].keys.append(key)
            found += groups.values()
    return found


def _signature(block: nn.Module) -> Any:
    weights = tuple((name, weight.shape, weight.dtype) for name, weight in block.named_parameters())
    return type(block), weights, tuple((name, *_settings(module)) for name, module in block.named_modules())


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module was told, but for its place in the model."""
    for name, value in vars(module).items():
        if isinstance(value, bool | int | float | str | None) and not PLACE.search(name):
            yield name, value


@contextlib.contextmanager
def keep_blocks(kept: Mapping[Blocks, int]) -> Iterator[None]:
    """Have a model run the first few of each group of blocks inside of the ``with``, under their own names."""
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
