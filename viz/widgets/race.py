"""A race in a thread, told to whoever shows it as it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from tlora.comparison.race import race
from tlora.comparison.race_result import Race
from viz.widgets.training import Followed

PAUSE = 0.3
"""Least seconds between two times that a training is told of."""


class _Lane(Followed):
    """The first training of an arm."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(every=1)
        self._tell, self._next = tell, 0.0
        self.planned = 0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # type: ignore[override]
        """Note the losses, and tell of them if that is due."""
        super().on_log(args, state, control, **kwargs)
        self.planned = state.max_steps
        if time.monotonic() >= self._next:
            self._tell()
            self._next = time.monotonic() + PAUSE


class LiveRace:
    """`tlora.race` in a thread.

    Parameters
    ----------
    tell : callable
        Called with `state` whenever there is something new, in the thread that trains.
    model, task, arms, **options
        As for `tlora.race`.

    Attributes
    ----------
    running : bool
        Whether it has not ended yet.
    result : Race or None
        When it has ended; None before, and where it failed.
    said : str
        What is going on, what was found, or why it failed.
    """

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], model: Any, task: Any, arms: Mapping[str, Any], **options: Any
    ) -> None:
        self.running = True
        self.result: Race | None = None
        self.said = "Trying learning rates" if options.get("learning_rate") is None else "Preparing"
        self._tell = tell
        self._lanes = {name: _Lane(self._told) for name in arms}
        self._held: dict[str, list[tuple[int, float]]] = {name: [] for name in arms}
        options |= {"callbacks": {name: [lane] for name, lane in self._lanes.items()}, "watch": self._looked}
        self._thread = threading.Thread(target=self._run, args=(model, task, arms, options), daemon=True)
        self._told()
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """JSON values: whether it runs, what is said, and of each arm steps, losses and updates by module."""
        return {"running": self.running, "said": self.said, "winner": self.result.leader if self.result else ""} | {
            "arms": {name: self._arm(name) for name in self._lanes}
        }

    def stop(self, name: str) -> None:
        """End the trainings of an arm after the step that runs; the other goes on.

        Raises
        ------
        KeyError
            If there is no such arm.
        """
        self._lanes[name].stop()
        self._told()

    def wait(self, seconds: float | None = None) -> None:
        """Return when it has ended, or so many seconds have passed."""
        self._thread.join(seconds)

    def _arm(self, name: str) -> dict[str, Any]:
        lane = self._lanes[name]
        latest = lane.latest
        return {
            "step": lane.losses[-1][0] if lane.losses else 0,
            "planned": lane.planned,
            "losses": list(lane.losses),
            "held": list(self._held[name]),
            "stopped": lane.stopped,
            "updates": dict(zip(latest["module"], latest["update_norm"].astype(float), strict=True)),
        }

    def _looked(self, found: Race) -> None:
        frame = found.to_frame()
        means = frame.groupby(["arm", "step"], sort=False)["loss"].mean()
        self._held = {
            name: [(step, means[name, step]) for step in found.looks if (name, step) in means.index]
            for name in self._lanes
        }
        self.said = f"After {found.looks[-1]} of {found.steps} steps: {found.finding}"
        self._told()

    def _told(self) -> None:
        if self.said in ("Trying learning rates", "Preparing") and any(lane.losses for lane in self._lanes.values()):
            self.said = "Training"
        self._tell(self.state)

    def _run(self, model: Any, task: Any, arms: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        try:
            self.result = race(model, task, arms, **{**options, "progress": False})
            self.said = self.result.sentence
        except Exception as error:  # noqa: BLE001  (in a thread nobody else would hear of it)
            self.said = f"The race failed: {error}"
        self.running = False
        self._told()
