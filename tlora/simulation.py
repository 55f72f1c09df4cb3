"""What a model would hold and compute, found by running its code on tensors without data."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import FlopCounterMode


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive.

    Attributes
    ----------
    now : int
        At this moment.
    peak : int
        The most so far; may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it made."""
        if func.__name__ == "_grouped_mm.default":  # without data torch has it for bfloat16 alone
            made = func(*tree_map(_short, args), **tree_map(_short, kwargs or {})).to(args[0].dtype)
        else:
            made = func(*args, **(kwargs or {}))
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


def _short(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass
class Simulation:
    """Memory and floating-point operations of what is run inside of `simulated`."""

    live: LiveMemory
    counter: FlopCounterMode

    def measure(self, act: Callable[[], object]) -> tuple[int, int]:
        """Peak of memory while ``act`` runs, what was there before included, and the operations of its products.

        Parameters
        ----------
        act : callable
            Run once; what it returns is let go.
        """
        self.live.peak, before = self.live.now, self.counter.get_total_flops()
        act()
        return self.live.peak, self.counter.get_total_flops() - before


@contextlib.contextmanager
def simulated() -> Iterator[Simulation]:
    """Tensors made inside of the block have shapes and no data, whatever their size: nothing is computed.

    Notes
    -----
    Operations choose their kernels as on the CPU, so attention is never a matrix of tokens by tokens, which holds for
    GPUs too.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as live, FlopCounterMode(display=False) as counter:
        yield Simulation(live, counter)
