"""The processes of one run: their number, sums over them, and loops in step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor, distributed

Item = TypeVar("Item")


def is_cpu_run() -> bool:
    """Whether the run computes on the CPU; accelerate has to be told so before it connects processes."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU", not torch.accelerator.is_available()))


@dataclass(frozen=True)
class Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started, this one among them.

    Attributes
    ----------
    rank : int
        Index of this process, from 0.
    count : int
        Number of processes: 1 without a launcher.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """The processes of this run; accelerate connects them if they are not connected yet.

        An accelerate that was set up without connecting them is refused: each process would do all of the work.
        """
        connected = distributed.is_available() and distributed.is_initialized()
        if not connected and int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()  # accelerate's state, once created, would decide for later training
        state = PartialState(cpu=is_cpu_run())
        started = int(os.environ.get("WORLD_SIZE", state.num_processes))
        if state.num_processes != started:
            raise RuntimeError(
                f"{started} processes were started, and accelerate knows of {state.num_processes}: something set it up "
                "without connecting them; on a CPU, make accelerate.PartialState(cpu=True) first"
            )
        return cls(state.process_index, state.num_processes)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        for tensor in tensors if self.count > 1 else ():
            tensor.copy_(reduce(tensor.to(PartialState().device), "sum"))

    def synchronized_items(self, items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
        """Yield items of a loop that every process repeats equally often, such as passes of a sharded model.

        Yields
        ------
        tuple
            An item, which can be pickled, and whether it is this process's own; if none is left, an item of another.
        """
        iterator = iter(items)
        while True:
            item = next(iterator, None)
            now = [each for each in self.gather(item) if each is not None]
            if not now:
                return
            yield (now[0], False) if item is None else (item, True)

    def run_on_first(self, act: Callable[[], object]) -> None:
        """Let the first process act while the others wait, e.g. to write a file that all would write alike."""
        self._wait()
        if self.rank == 0:
            act()
        self._wait()

    def _wait(self) -> None:
        if self.count > 1:
            PartialState().wait_for_everyone()

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        return any(self.gather(value))

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order."""
        return list(gather_object([value])) if self.count > 1 else [value]
