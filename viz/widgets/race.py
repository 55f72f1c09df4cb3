"""A race in a thread that reports its state while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from tlora.comparison.race import race
from tlora.comparison.race_result import Race
from viz.widgets.curves import TrainingFollower

PAUSE = 0.3
"""Least seconds between two reports of a training."""


class FollowedArm(TrainingFollower):
    """Follows the trainings of an arm; its losses are those of the latest."""

    def __init__(self, report: Callable[[], None]) -> None:
        super().__init__(every=1)
        self._report, self._next = report, 0.0
        self.running = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with no losses and no request to stop."""
        super().on_train_begin(args, state, control, **kwargs)
        self.losses = []
        self._stopping.clear()
        self.planned, self.running = state.max_steps, True
        self._report()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:  # type: ignore[override]
        """Note the losses, and report them if it is time to."""
        super().on_log(args, state, control, **kwargs)
        if time.monotonic() >= self._next:
            self._report()
            self._next = time.monotonic() + PAUSE

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the end."""
        super().on_train_end(args, state, control, **kwargs)
        self.running = False
        self._report()


class LiveRace:
    """`tlora.race` in a thread, which calls ``report`` with `state` whenever there is something new.

    ``result`` is None before the end and if the race failed; ``status`` then says why.
    """

    def __init__(
        self, report: Callable[[dict[str, Any]], None], model: Any, task: Any, arms: Mapping[str, Any], **options: Any
    ) -> None:
        self.running = True
        self.result: Race | None = None
        self.status = "Preparing"
        self._report_state = report
        self._arms = {name: FollowedArm(self._report) for name in arms}
        self._held_out: dict[str, list[tuple[int, float]]] = {name: [] for name in arms}
        options |= {"callbacks": {name: [arm] for name, arm in self._arms.items()}, "watch": self._watch}
        self._thread = threading.Thread(target=self._run, args=(model, task, arms, options), daemon=True)
        self._report()
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """JSON values: whether it runs, its status, and of each arm steps, losses and updates by module."""
        return {"running": self.running, "said": self.status, "winner": self.result.leader if self.result else ""} | {
            "arms": {name: self._arm(name) for name in self._arms}
        }

    def stop(self, name: str) -> None:
        """End the training of an arm after the step that runs; nothing if another arm is being trained."""
        if self._arms[name].running:
            self._arms[name].stop()
            self._report()

    def wait(self, seconds: float | None = None) -> None:
        """Return when the race has ended, or so many seconds have passed."""
        self._thread.join(seconds)

    def _arm(self, name: str) -> dict[str, Any]:
        arm = self._arms[name]
        latest = arm.latest
        return {
            "step": arm.losses[-1][0] if arm.losses else 0,
            "planned": arm.planned,
            "losses": list(arm.losses),
            "held": list(self._held_out[name]),
            "running": arm.running,
            "stopped": arm.stopped,
            "updates": dict(zip(latest["module"], latest["update_norm"].astype(float), strict=True)),
        }

    def _watch(self, race: Race) -> None:
        means = race.to_frame().groupby(["arm", "step"], sort=False)["loss"].mean()
        self._held_out = {name: list(means[name].items()) for name in self._arms}
        last = race.differences()["step"].max()
        if last > 0:
            self.status = f"After {last} of {race.steps} steps: {race.headline}"
        self._report()

    def _report(self) -> None:
        if self.status == "Preparing" and any(arm.running for arm in self._arms.values()):
            self.status = "Training"
        self._report_state(self.state)

    def _run(self, model: Any, task: Any, arms: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        try:
            self.result = race(model, task, arms, **{**options, "progress": False})
            self.status = self.result.sentence
        except Exception as error:  # noqa: BLE001  (in a thread nobody else would hear of it)
            self.status = f"The race failed: {error}"
        self.running = False
        self._report()
