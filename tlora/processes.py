"""The processes of one run: which part is whose, and what they add up to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """The processes that ``torchrun`` or ``accelerate launch`` started, this one among them.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    count : int
        How many there are: 1 without a launcher.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_run(cls) -> Processes:
        """As accelerate finds them; it connects them where nobody has."""
        connected = distributed.is_available() and distributed.is_initialized()
        if not connected and int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()  # accelerate's state, once made, decides for whoever trains later
        state = PartialState()
        return cls(state.process_index, state.num_processes)

    def add_up_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        for tensor in tensors if self.count > 1 else ():
            tensor.copy_(reduce(tensor.to(PartialState().device), "sum"))

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in their order."""
        return list(gather_object([value])) if self.count > 1 else [value]
