"""A training that is done step by step, so that several can take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tlora.training.run import TrainingRun
from tlora.utils.reproducibility import RandomState


class Stepwise(TrainerCallback):
    """One call of `tlora.train` that waits before each step until it is told to go on.

    Parameters
    ----------
    train : callable
        Calls `tlora.train` with the callback that it is given, this one, and returns the run.

    Attributes
    ----------
    run : TrainingRun or None
        The run, when training is over. Its ``seconds`` are those of its own steps.
    steps : int
        Steps done.
    preparation : float
        Seconds before the first step.
    seconds : float
        Seconds since, of its own steps; what others did meanwhile is not in it.

    Notes
    -----
    The Trainer has no way to do one step and return, so it runs in a thread, and either that thread or the caller's
    works, never both. It has its own state of the global generators, so that the numbers are those of `tlora.train`
    alone.
    """

    stopped = True  # `train` is not to warn that it was ended early: who takes turns says so

    def __init__(self, train: Callable[[TrainerCallback], TrainingRun]) -> None:
        self.run: TrainingRun | None = None
        self.steps, self.preparation, self.seconds = 0, 0.0, 0.0
        self._train = train
        self._error: BaseException | None = None
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._working = self._ending = False
        self._random = RandomState()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def over(self) -> bool:
        """Whether training has ended."""
        return self.run is not None or self._error is not None

    def advance(self) -> bool:
        """Do the next step; the first call prepares training and does none. False where training has ended.

        Raises
        ------
        Exception
            What `tlora.train` raises.
        KeyboardInterrupt
            If the caller is interrupted; the step is then still being done, and `end` waits for it.
        """
        if self.over:
            return False
        first = not self._thread.ident
        with self._random.used():
            began = time.perf_counter()
            self._working = True
            self._thread.start() if first else self._go.release()
            self._wait()
            took = time.perf_counter() - began
        self.preparation += took if first else 0.0
        self.seconds += 0.0 if first else took
        if self.run is not None:
            self.run = replace(self.run, seconds=self.seconds)
        if self._error is not None:
            raise self._error
        return not self.over

    def end(self) -> None:
        """End training where it is and keep the run; nothing if it has ended, or never began."""
        self._ending = True
        if self._working:
            self._wait()  # for the step in which the caller was interrupted
        if self._thread.ident and not self.over:
            self.advance()

    def _wait(self) -> None:
        self._waits.acquire()
        self._working = False

    def _work(self) -> None:
        try:
            self.run = self._train(self)
        except BaseException as error:  # noqa: BLE001  (raised again in the thread of the caller)
            self._error = error
        finally:
            self._waits.release()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the next turn; the step before is done, and logged."""
        self.steps = state.global_step
        self._waits.release()
        self._go.acquire()
        if self._ending:
            raise KeyboardInterrupt  # which `train` takes for the user's, and returns what was trained

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the last step."""
        self.steps = state.global_step
