"""Race: the held-out losses of each arm, paired differences with intervals, and the adapters that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tlora.comparison.interval import more_needed, paired_interval
from tlora.results import Meta, Result
from tlora.training.run import TrainingRun

AHEAD, BEHIND, NO_DIFFERENCE, NOT_DECIDED = "ahead", "behind", "no difference", "not decided"


class Pair(NamedTuple):
    """Two arms compared; the columns of `Race.differences`."""

    arm: str
    other: str
    step: int
    seeds: int
    loss: float
    difference: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, repr=False, eq=False)
class Race(Result):
    """The result of `tlora.race`: held-out losses, paired differences with intervals, and what was trained.

    Two arms are compared at the last evaluation that both reached, over the seeds with which both reached it.

    Attributes
    ----------
    arms : list of str
        Names of the arms.
    seeds : list of int
        Seeds of each arm's trainings.
    steps : int
        Optimizer steps that were planned for each training.
    evaluated : list of int
        Steps after which the held-out loss is evaluated. The first is 0: the base.
    losses : (evaluations, arms, seeds, samples) float64 tensor
        Nats. Each sample is weighted by its tokens, so that the mean over samples is the held-out loss; NaN if a
        training did not get that far.
    clock : (evaluations, arms, seeds) float64 tensor
        Seconds of training up to each evaluation.
    learning_rates : dict of float
        Peak learning rate by arm.
    parameters : dict of int
        Trained parameters by arm.
    search : list of (str, float, float)
        Arm, learning rate and validation loss of each rate that was tried; infinite if the training diverged.
    diverged : dict of int
        Arms whose loss or gradient became NaN or infinite, and after how many steps. They are not compared.
    interrupted : bool
        The user ended the race before its last training.
    margin : float
        Differences up to this do not matter; nats.
    confidence : float
        Share of races in which the intervals of all pairs contain the true difference.
    seconds : float
        Duration of everything, the search for learning rates included.
    meta : Meta
        Model, task, number of held-out samples and the arguments of the call.
    runs : dict of list of TrainingRun
        The trainings by arm, in the order of the seeds.

    References
    ----------
    See `tlora.race` and ``tlora.comparison.interval``.

    Examples
    --------
    >>> race = tlora.race(model, task, {"paper": "tlora-paper", "LoRA": "lora"}, steps=4, seeds=2, learning_rate=1e-2,
    ...                   progress=False)
    >>> race.differences().columns.tolist()
    ['arm', 'other', 'step', 'seeds', 'loss', 'difference', 'low', 'high', 'verdict']
    >>> race.save("race").name
    'race.safetensors'
    >>> race.winner.save("winner").name
    'winner'
    """

    arms: list[str]
    seeds: list[int]
    steps: int
    evaluated: list[int]
    losses: Float[Tensor, "evaluations arms seeds samples"]
    clock: Float[Tensor, "evaluations arms seeds"]
    learning_rates: dict[str, float]
    parameters: dict[str, int]
    search: list[tuple[str, float, float]]
    diverged: dict[str, int]
    interrupted: bool
    margin: float
    confidence: float
    seconds: float
    meta: Meta
    runs: dict[str, list[TrainingRun]] = field(default_factory=dict)

    columns: ClassVar[dict[str, str]] = {
        "arm": "its name",
        "seed": "of the training",
        "step": "optimizer steps done",
        "loss": "held-out loss, nats per labeled token (per sample, for classification)",
        "seconds": "of this training up to this step",
        "parameters": "trained parameters",
        "learning_rate": "peak learning rate",
    }
    difference_columns: ClassVar[dict[str, str]] = {
        "arm": "the arm with the lower loss",
        "other": "the arm that it is compared with",
        "step": "optimizer steps after which both are compared",
        "seeds": "number of seeds that both were trained with up to this step",
        "loss": "held-out loss of the arm, mean over these seeds; nats",
        "difference": "loss of the other arm minus that of the arm, mean over seeds and samples; nats",
        "low": "lower end of its interval",
        "high": "upper end of its interval",
        "verdict": "ahead, behind, no difference (larger than the margin) or not decided",
    }

    @property
    def ranked(self) -> list[str]:
        """The arms by held-out loss where all of them can be compared; those that diverged come last."""
        alive = [name for name in self.arms if name not in self.diverged]
        evaluation, seeds = self._common(alive)
        losses = {name: self._losses(name, evaluation, seeds).mean() for name in alive}
        return [*sorted(alive, key=losses.__getitem__), *self.diverged]

    @property
    def leader(self) -> str:
        """The arm with the lowest held-out loss; `sentence` says whether the difference is more than chance."""
        return self.ranked[0]

    @property
    def winner(self) -> TrainingRun:
        """The leader's training with the first seed: ``race.winner.save(folder)`` writes its adapter.

        Raises
        ------
        ValueError
            If the race holds no training of the leader.
        """
        if not self.runs.get(self.leader):
            raise ValueError(f"there is no adapter of {self.leader!r} to save: the race holds no training of it")
        return self.runs[self.leader][0]

    @property
    def is_ahead(self) -> bool:
        """Whether the leader's loss is lower than that of each other arm by more than chance."""
        pairs = [pair for pair in self._pairs() if pair.arm == self.leader]
        return bool(pairs) and all(pair.verdict == AHEAD for pair in pairs)

    @property
    def sentence(self) -> str:
        """The outcome and its basis: ``A is ahead of B by 0.03 to 0.09 nats (12 steps, 95 % intervals ...)``."""
        return f"{self.headline} ({self.basis})"

    @property
    def headline(self) -> str:
        """The verdict on each pair of up to three arms; with more arms, on the leader and each other arm."""
        pairs = [pair for pair in self._pairs() if len(self.arms) <= 3 or pair.arm == self.leader]
        clauses = [self._describe(pair) for pair in pairs]
        return "; ".join([*clauses, *(f"{name} diverged after {step} steps" for name, step in self.diverged.items())])

    @property
    def verdict(self) -> str:
        """How the leader compares with the next arm; which arms diverged if no two are left."""
        pairs = self._pairs()
        return self._describe(pairs[0]) if pairs else self.headline

    @property
    def basis(self) -> str:
        """The steps, seeds and held-out samples behind the headline, and what its intervals are for."""
        evaluation, seeds = self._common([name for name in self.arms if name not in self.diverged])
        step, samples, count = self.evaluated[evaluation], self.losses.shape[-1], len(seeds)
        steps = f"after {step} of {self.steps} steps" if step < self.steps else f"{step} steps"
        level = f"{steps}, {100 * self.confidence:g} % intervals for other"
        if count == 1:
            return (
                f"{level} samples, from one seed and {samples} held-out samples: "
                "they say which of these adapters is better, not which way of making one"
            )
        return f"{level} seeds and samples, from {count} seeds and {samples} held-out samples"

    def to_frame(self) -> pd.DataFrame:
        """One row an arm, seed and evaluation; see ``columns``."""
        losses = self.losses.mean(-1)
        rows = [
            (arm, seed, step, loss, self.clock[k, a, i].item(), self.parameters[arm], self.learning_rates[arm])
            for a, arm in enumerate(self.arms)
            for i, seed in enumerate(self.seeds)
            for k, step in enumerate(self.evaluated)
            if np.isfinite(loss := losses[k, a, i].item())
        ]
        return pd.DataFrame(rows, columns=list(self.columns))

    def differences(self) -> pd.DataFrame:
        """One row a pair of arms that did not diverge, the leader's first; see ``difference_columns``."""
        return pd.DataFrame(self._pairs(), columns=list(self.difference_columns))

    def _pairs(self) -> list[Pair]:
        alive = [name for name in self.ranked if name not in self.diverged]
        return [self._compare(arm, other) for arm, other in combinations(alive, 2)]

    def _compare(self, arm: str, other: str) -> Pair:
        evaluation, seeds = self._common([arm, other])
        step = self.evaluated[evaluation]
        losses = self._losses(arm, evaluation, seeds)
        differences = self._losses(other, evaluation, seeds) - losses
        difference, low, high = paired_interval(differences, self._error)
        verdict = NOT_DECIDED
        if low > 0:
            verdict = AHEAD
        elif high < 0:
            verdict = BEHIND
        elif step == self.steps and -self.margin <= low and high <= self.margin:  # at first there never is a difference
            verdict = NO_DIFFERENCE
        return Pair(arm, other, step, len(seeds), float(losses.mean()), difference, low, high, verdict)

    @property
    def _error(self) -> float:
        """The share of intervals of one pair that may miss, by the union bound over all pairs."""
        return (1 - self.confidence) / (len(self.arms) * (len(self.arms) - 1) / 2)

    def _common(self, names: Sequence[str]) -> tuple[int, list[int]]:
        """The last evaluation that all these arms reached with the same seed, and the seeds with which they did."""
        arms = [self.arms.index(name) for name in names]
        reached = self.losses[:, arms].isfinite().all(-1).all(1).numpy()
        evaluation = max(np.flatnonzero(reached.any(1)).tolist(), default=0)
        return evaluation, np.flatnonzero(reached[evaluation]).tolist()

    def _losses(self, name: str, evaluation: int, seeds: list[int]) -> Float[np.ndarray, "seeds samples"]:
        return self.losses[evaluation, self.arms.index(name), seeds].numpy()

    def _describe(self, pair: Pair) -> str:
        arm, other, low, high = pair.arm, pair.other, pair.low, pair.high
        if pair.step == 0:
            return f"{arm} and {other}: not decided, as they were not evaluated after the same number of steps"
        if pair.verdict in (AHEAD, BEHIND):
            first, second, least, most = (arm, other, low, high) if low > 0 else (other, arm, -high, -low)
            within = "within" if most <= self.margin else "perhaps within" if least <= self.margin else ""
            small = f", {within} the {self.margin:g} that do not matter" if within else ""
            ahead = f"{first} is ahead of {second} by {interval_text(least, most)} nats"
            return f"{ahead}{small}{self._cost(first, second)}"
        if pair.verdict == NO_DIFFERENCE:
            return f"no difference larger than {self.margin:g} nats between {arm} and {other}"
        common = self._common([arm, other])
        differences = self._losses(other, *common) - self._losses(arm, *common)
        more = more_needed(differences, self._error, self.margin)
        return f"{arm} and {other}: not decided ({interval_text(low, high)} nats), {more} would be needed"

    def _cost(self, arm: str, other: str) -> str:
        """What the first trains compared with the second; empty if that is as much to within a twentieth."""
        ratio = self.parameters[arm] / self.parameters[other]
        return "" if 0.95 <= ratio <= 1.05 else f", with {ratio:.2g} times the trained parameters"

    def _summary(self) -> str:
        return f"{self.sentence}; {'interrupted, ' if self.interrupted else ''}{self.seconds:.3g} s"


def interval_text(low: float, high: float) -> str:
    """Two losses with as many digits as distinguish them from zero and from each other: ``0.03 to 0.09``."""
    smallest = min(x for x in (abs(low), abs(high), high - low, 1.0) if x > 0)
    digits = min(6, max(2, 1 - int(np.floor(np.log10(smallest)))))
    return f"{low:.{digits}f} to {high:.{digits}f}"
