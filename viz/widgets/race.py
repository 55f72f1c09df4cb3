"""Train both: the race of the kept and the new allocation, in a thread that reports its state while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tlora.adapters.attach import copy_base
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.comparison.race import FEWEST_STEPS, held_out_split, race
from tlora.comparison.race_result import Race
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.progress import report_progress
from tlora.utils.text import rough_duration_text
from viz.plots.allocation import allocation_headline
from viz.widgets.panels.parts import bar, shorten_all
from viz.widgets.past_race import PastRace, RacedArm, describe_difference, describe_rates, is_same_pair
from viz.widgets.state import allocation_code, state_from_allocation
from viz.widgets.training_follower import TrainingFollower

TRAINING: Mapping[str, Any] = {
    "seconds": 120, "seeds": [0], "learning_rate": 2e-3, "batch_size": 4, "evaluation_limit": 32,
}  # fmt: skip
"""Arguments of `tlora.race` by default: as many steps as fit into two minutes, at least eight."""
PAUSE = 0.3
"""Least seconds between two reports of a training."""
REQUESTS = 6
"""Held-out samples that both adapters answer at the end of their training."""


class FollowedArm(TrainingFollower):
    """Follows the trainings of an arm; its losses and ``answers`` are those of the latest."""

    def __init__(self, report: Callable[[], None], answer: Callable[[Any], pd.DataFrame]) -> None:
        super().__init__(every=1)
        self._report, self._answer, self._next = report, answer, 0.0
        self.running = False
        self.answers: pd.DataFrame | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with no losses and no request to stop."""
        super().on_train_begin(args, state, control, **kwargs)
        self.losses = []
        self._stopping.clear()
        self.planned, self.running = state.max_steps, True
        self._report()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Note the losses, and report them if it is time to."""
        super().on_log(args, state, control, **kwargs)
        if time.monotonic() >= self._next:
            self._report()
            self._next = time.monotonic() + PAUSE

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the end, and have the adapter answer."""
        super().on_train_end(args, state, control, **kwargs)
        self.running = False
        self._report()
        self.answers = self._answer(kwargs["model"])
        self._report()


class AllocationRace:
    """**Train both** of a workbench: which two allocations are raced, whether they can be, and how the races stand.

    ``training`` are arguments of `tlora.race`; ``show`` is called with the traits of the browser that a race changes.
    ``past`` are the races that have ended.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        subspaces: Subspaces | None,
        model: Any,
        task: Any,
        training: Mapping[str, Any],
        show: Callable[..., None],
    ) -> None:
        self.training = merge_training(TRAINING, training)
        self.live: LiveRace | None = None
        self.past: list[PastRace] = []
        self._sensitivity, self._subspaces, self._model, self._task = sensitivity, subspaces, model, task
        self._show = show
        self._uniform: tuple[Allocation, Allocation] | None = None  # of a kept one
        self._raced: dict[str, RacedArm] = {}  # what `live` trains
        self._described: list[tuple[Allocation, RacedArm]] = []  # a drag changes one of two

    @property
    def can_train(self) -> bool:
        """Whether there are a model and a task."""
        return self._model is not None and self._task is not None

    @property
    def result(self) -> Race | None:
        """The last race, when it has ended."""
        return None if self.live is None else self.live.result

    @property
    def listed(self) -> list[dict[str, Any]]:
        """What the browser lists: the races that have ended, as JSON values."""
        return [race.values(self._places) for race in self.past]

    def arms(self, kept: Allocation, new: Allocation) -> dict[str, Allocation]:
        """The kept and the new allocation, or the uniform and the kept one if they agree; empty if these agree too."""
        if not is_same_adapter(kept, new):
            return {"kept": kept, "new": new}
        uniform = self._uniform_of(kept)
        return {} if is_same_adapter(uniform, kept) else {"uniform": uniform, "kept": kept}

    def values(self, kept: Allocation, new: Allocation) -> dict[str, Any]:
        """What the browser says of the two allocations, as JSON values.

        ``raced`` is the last of the past races in which just these two were trained, ``is_live`` whether `live` trains
        them.
        """
        arms = self._describe(self.arms(kept, new))
        numbers = [number for number, race in enumerate(self.past) if race.is_of(arms)]
        return {
            "arms": {name: arm.values for name, arm in arms.items()},
            "difference": describe_difference(arms, self._places),
            "obstacle": self._obstacle(arms),
            "raced": numbers[-1] if numbers else None,
            "is_live": is_same_pair(self._raced, arms),
        }

    def train(self, kept: Allocation, new: Allocation, options: Mapping[str, Any]) -> None:
        """Race them in a thread, or refuse to."""
        arms = self.arms(kept, new)
        if obstacle := self._obstacle(arms):
            raise ValueError(obstacle)
        if self.live is not None and self.live.running:
            raise ValueError("Both are being trained already: stop them, or wait")
        arguments = {"subspaces": self._subspaces, **merge_training(self.training, options)}
        self._raced = self._describe(arms)
        self.live = LiveRace(self._follow, self._model, self._task, arms, **arguments)

    def stop(self, name: str) -> None:
        """End the training of an arm after the step that runs; the race goes on."""
        if self.live is not None:
            self.live.stop(name)

    def _uniform_of(self, kept: Allocation) -> Allocation:
        if self._uniform is None or self._uniform[0] is not kept:
            same = {name: getattr(kept.options, name) for name in ("alpha", "scaling")}
            uniform = allocate(self._sensitivity, kept.rank, **same, adapt_ranks=False, adapt_scales=False)
            self._uniform = kept, uniform
        return self._uniform[1]

    def _obstacle(self, arms: Collection[str]) -> str:
        """Why these cannot be trained; empty if they can."""
        missing = [name for name, part in (("model", self._model), ("task", self._task)) if part is None]
        if missing:
            return (
                f"Training needs {' and '.join(missing)}: make the workbench with "
                f"viz.Workbench(calibration, subspaces, {', '.join(f'{name}={name}' for name in missing)})"
            )
        return "" if arms else "All modules have the same rank, as was kept: change a rank or a control first"

    @property
    def _places(self) -> list[str]:
        layers, projections = self._sensitivity.layers, self._sensitivity.projections
        return [f"layer {layers[name]} {projections[name]}" for name in self._sensitivity.names]

    def _describe(self, arms: Mapping[str, Allocation]) -> dict[str, RacedArm]:
        known = self._described
        self._described = [
            (arm, next((described for other, described in known if other is arm), None) or self._describe_arm(arm))
            for arm in arms.values()
        ]
        return {name: described for name, (_, described) in zip(arms, self._described, strict=True)}

    def _describe_arm(self, allocation: Allocation) -> RacedArm:
        state, names = state_from_allocation(allocation), self._sensitivity.names
        if state.directions is not None and self._subspaces is not None:
            state = replace(state, directions=self._subspaces)  # which the reader has under this name
        return RacedArm(
            allocation_code(self._sensitivity, state),
            allocation_headline(allocation),
            allocation.trainable_parameters,
            [allocation.ranks.get(name, 0) for name in names],
            [allocation.scalings.get(name, 0.0) for name in names],
        )

    def _follow(self, state: dict[str, Any]) -> None:
        """Show how training stands; called in its thread."""
        state |= {"number": len(self.past), "difference": describe_difference(self._raced, self._places)}
        for name, arm in state["arms"].items():
            updates = shorten_all([arm["updates"].get(module, np.nan) for module in self._sensitivity.names])
            arm |= self._raced[name].values | {"updates": updates}
        if not state["winner"]:
            self._show(training=state)
            return
        assert self.result is not None  # there is a winner
        self.past.append(PastRace(replace(self.result, runs={}), self._raced))
        listed = self.listed
        arms = {name: arm | listed[-1]["arms"][name] for name, arm in state["arms"].items()}
        self._show(training=state | listed[-1] | {"arms": arms}, races=listed)


class LiveRace:
    """`tlora.race` in a thread, which calls ``report`` with `state` whenever there is something new.

    It trains on a copy of the base that shares the weights, so that an adapter on the model stays as it is.
    ``allocations`` are its arms. ``result`` is None before the end and if the race failed; ``status`` then says why.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        model: Any,
        task: Any,
        arms: Mapping[str, Allocation],
        **options: Any,
    ) -> None:
        self.running = True
        self.result: Race | None = None
        self.status = "Preparing: the base is evaluated, and two steps of each are timed, which are not recorded"
        self.basis = ""
        self.allocations = arms
        self._bar: dict[str, Any] = {}
        self._report_state = report
        self._model, self._task, self._options = model, task, options
        self._arms = {name: FollowedArm(self._report, self._ask) for name in arms}
        self._held_out: dict[str, list[tuple[int, float]]] = {name: [] for name in arms}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._report()
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """JSON values: whether it runs, its status, bar and answers, and of each arm losses and updates."""
        return {
            "running": self.running,
            "said": self.status,
            "basis": self.basis,
            "bar": self._bar,
            "winner": self.result.leader if self.result else "",
            "answers": answers_by_request({name: arm.answers for name, arm in self._arms.items()}),
            "arms": {name: self._arm(name) for name in self._arms},
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

    def _plan(self, step: float, rest: float) -> int:
        """The steps that were asked for, or as many as fit into the seconds; says how long they will take."""
        steps = self._options.get("steps") or max(FEWEST_STEPS, int((self._options["seconds"] - rest) / step))
        rate = self._options.get("learning_rate")
        at = f" at learning rate {rate:g}" if isinstance(rate, float | int) else ""
        self.status = f"{steps} steps each{at}, {rough_duration_text(steps * step + rest)}"
        self._report()
        return steps

    def _watch(self, race: Race) -> None:
        means = race.to_frame().groupby(["arm", "step"], sort=False)["loss"].mean()
        self._held_out = {name: list(means[name].items()) for name in self._arms}
        last = race.differences()["step"].max()
        if last > 0:
            self.status = f"After {last} of {race.steps} steps: {race.headline}"
        self._report()

    def _ask(self, model: Any) -> pd.DataFrame:
        return self._task.predict(model, split=held_out_split(self._task), limit=REQUESTS)

    def _move_bar(self, words: str, done: int, total: int | None) -> None:
        self._bar = bar(words, done, total)
        self._report()

    def _report(self) -> None:
        self._report_state(self.state)

    def _run(self) -> None:
        callbacks = {name: [arm] for name, arm in self._arms.items()}
        options = {**self._options, "callbacks": callbacks, "watch": self._watch, "progress": False}
        try:
            steps = {"steps": self._plan, "seconds": None}
            with report_progress(self._move_bar):
                self.result = race(copy_base(self._model), self._task, self.allocations, **options | steps)
            self.status, self.basis = self.result.headline, f"{self.result.basis}. {describe_rates(self.result)}"
        except Exception as error:  # noqa: BLE001  (in a thread nobody else would hear of it)
            self.status = f"The race failed: {error}"
        self.running, self._bar = False, {}
        self._report()


def answers_by_request(answers: Mapping[str, pd.DataFrame | None]) -> list[dict[str, Any]]:
    """One entry a request: its text, the right answer, and by arm what it wrote and whether the metric calls it right.

    Empty before an arm has answered; the metric is the first of the task.
    """
    given = {name: frame for name, frame in answers.items() if frame is not None}
    entries: list[dict[str, Any]] = []
    for name, frame in given.items():
        metric = frame.columns[frame.columns.get_loc("prediction") + 1 :][:1]
        right = (frame[metric[0]] == 1).tolist() if len(metric) else [None] * len(frame)
        requests = zip(frame.iloc[:, 0], frame["answer"], strict=True)
        entries = entries or [{"request": request, "right": answer, "by": {}} for request, answer in requests]
        for entry, written, is_right in zip(entries, frame["prediction"], right, strict=True):
            entry["by"][name] = {"text": written, "right": is_right}
    return entries


def is_same_adapter(left: Allocation, right: Allocation) -> bool:
    """Whether both have the same ranks, of experts too, and scalings."""
    return all(getattr(left, of) == getattr(right, of) for of in ("ranks", "expert_ranks", "scalings"))


def merge_training(before: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a race, of which ``options`` win: steps take the place of seconds, and seconds that of steps."""
    replaced = {"steps", "seconds"} if {"steps", "seconds"} & options.keys() else set()
    return {name: value for name, value in before.items() if name not in replaced} | dict(options)
