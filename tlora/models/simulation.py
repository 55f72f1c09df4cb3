"""A model's own code on tensors that have shapes and no data: what would be alive, and what would be computed."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

PLACE = re.compile(r"(idx|index|_id|layer_num|layer_number)$")
"""Names of the settings that say which of the blocks one is."""

DEVICE = torch.ops.prim.device.default
FILLS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)


class Simulation(TorchDispatchMode):
    """Counts what operations make and compute, inside of `simulated`.

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it made."""
        kwargs = kwargs or {}
        if func in FILLS:  # with values that no tensor has here
            return args[0]
        if func is DEVICE and isinstance(args[0], FakeTensor):  # half of all that is asked
            return args[0].fake_device
        if func.__name__ == "_grouped_mm.default":  # without data torch has it for bfloat16 alone
            made = func(*tree_map(_short, args), **tree_map(_short, kwargs)).to(args[0].dtype)
        else:
            made = func(*args, **kwargs)
        if func.namespace == "prim":  # a question about a tensor
            return made
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=made)
        for tensor in tree_iter(made):
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


def _short(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def simulated() -> Iterator[Simulation]:
    """Tensors made inside of the block have shapes and no data, whatever their size: nothing is computed.

    Notes
    -----
    Operations choose their kernels as on the CPU, so attention is never a matrix of tokens by tokens, which holds for
    GPUs too.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Simulation() as simulation:
        yield simulation


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


def alike_blocks(model: nn.Module) -> list[Blocks]:
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
def only(kept: Mapping[Blocks, int]) -> Iterator[None]:
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
