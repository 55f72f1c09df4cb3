"""What a method is given to adapt a model: a fresh base, the task, the rank; and a memory of what it found before."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tlora.tasks.task import Batches, Task

T = TypeVar("T")


class Memory:
    """The last few things that were computed, by a key of JSON values, and what each of them took.

    Calibrations and decompositions depend on the base, the task and the rank, not on the learning rate: a search would
    make the same one again and again.

    Parameters
    ----------
    most : int
        How many are kept.

    Attributes
    ----------
    saved : float
        Seconds that were not spent because something was remembered.
    """

    def __init__(self, most: int = 6) -> None:
        self.most = most
        self.saved = 0.0
        self._found: OrderedDict[str, tuple[Any, float]] = OrderedDict()

    def __call__(self, key: Any, make: Callable[[], T]) -> T:
        """What is remembered under the key, or else made and remembered."""
        name = json.dumps(key, sort_keys=True)
        if name in self._found:
            self._found.move_to_end(name)
            value, seconds = self._found[name]
            self.saved += seconds
            return value
        started, saved = time.perf_counter(), self.saved
        value = make()
        self._found[name] = value, time.perf_counter() - started + self.saved - saved
        while len(self._found) > self.most:
            self._found.popitem(last=False)
        return value


@dataclass(frozen=True)
class Job:
    """One adapter to be made.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        A fresh base, for this adapter alone.
    task : Task
        What it is adapted to.
    rank : int
        Nominal rank.
    seed : int
        Seed of all that is random in it.
    steps : int
        Optimiser steps that it will be trained for.
    samples : int
        Training samples to calibrate on.
    memory : Memory
        Of this base model and this task.
    """

    model: Any
    task: Task
    rank: int
    seed: int = 0
    steps: int = 100
    samples: int = 32
    memory: Memory = field(default_factory=Memory)

    @property
    def fresh_head(self) -> bool:
        """Whether the base has a head that differs by seed, and with it all that depends on the loss."""
        return self.task.kind == "classification"

    def batches(self, batch_size: int = 8) -> Batches:
        """The samples to calibrate on."""
        return self.task.calibration(self.samples, batch_size)

    def once(self, key: tuple[Any, ...], make: Callable[[], T], seeded: bool = True) -> T:
        """What ``make`` gives, remembered for jobs of the same samples, and of the same seed where it is seeded."""
        return self.memory((*key, self.samples, self.seed if seeded else None), make)
