"""TrainingFollower: records the losses of a training, for the training monitor and the race."""

from __future__ import annotations

import threading
from typing import Any

from tlora.training.callbacks import ModuleRecorder


class TrainingFollower(ModuleRecorder):
    """Records the losses of a training in addition to its modules, and ends it when asked to.

    Parameters
    ----------
    every : int
        Steps between two records of the modules, as in ``ModuleRecorder``.

    Attributes
    ----------
    losses, evaluations : list of (int, float)
        Step and training loss, step and validation loss; nats per labeled token.
    planned : int
        Optimizer steps of the training; 0 before its first log.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__(every)
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        self.planned = 0
        self._stopping = threading.Event()  # set by the thread that hears the button

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end training."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End training after the current step."""
        self._stopping.set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Note the losses."""
        self.planned = state.max_steps
        for name, losses in (("loss", self.losses), ("eval_loss", self.evaluations)):
            if logs and name in logs:
                losses.append((state.global_step, float(logs[name])))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step if it is due, and end training if asked to."""
        super().on_step_end(args, state, control, **kwargs)
        control.should_training_stop |= self.stopped
