"""Race: what each arm came to at each look, which is ahead, and the adapters that were trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tlora.comparison.interval import Interval, more_needed, paired_interval
from tlora.results import Meta, Result
from tlora.training.run import TrainingRun

AHEAD, BEHIND, SAME, OPEN = "ahead", "behind", "no difference", "not decided"
"""What an interval says of a pair."""
ENDINGS = {
    "": "still running",
    "decided": "stopped as decided",
    "done": "all steps done",
    "time": "stopped as the time was up",
    "out": "stopped as no arm was left",
    "interrupted": "interrupted",
}
"""How a race ended, in words."""


@dataclass(frozen=True, repr=False, eq=False)
class Race(Result):
    """A race between adapters: losses at each look, paired differences with intervals, and what was trained.

    Attributes
    ----------
    arms : list of str
        Names of the arms.
    seeds : list of int
        Of each arm's trainings.
    steps : int
        Optimiser steps that were planned for each training.
    looks : list of int
        Steps at which they were evaluated; the first is 0.
    errors : list of float
        Share of races in which the intervals of a look may miss, for all pairs together; 0 for the first.
    losses : (looks, arms, seeds, samples) float64 tensor
        Nats, each sample weighted by its tokens, so that the mean over samples is the loss; NaN where an arm is out.
    clock : (looks, arms, seeds) float64 tensor
        Seconds that the training had taken.
    learning_rates : dict of float
        By arm.
    parameters : dict of int
        Trained parameters by arm.
    ladder : list of (str, float, float)
        Arm, learning rate and validation loss of what was tried before; infinite where it diverged.
    out : dict of str
        Why an arm has left the race, by name.
    ending : {"decided", "done", "time", "out", "interrupted", ""}
        One was ahead of all others; all steps were done; the time was up; all arms had left; the user; not yet.
    margin : float
        Differences up to this do not matter.
    seconds : float
        Time of everything, the search for learning rates included.
    runs : dict of list of TrainingRun
        By arm and seed; empty while the race goes on.
    meta : Meta
        Model, task, held-out samples and the arguments of the call.

    References
    ----------
    See `race` and ``tlora.comparison.sequential``.
    """

    arms: list[str]
    seeds: list[int]
    steps: int
    looks: list[int]
    errors: list[float]
    losses: Float[Tensor, "looks arms seeds samples"]
    clock: Float[Tensor, "looks arms seeds"]
    learning_rates: dict[str, float]
    parameters: dict[str, int]
    ladder: list[tuple[str, float, float]]
    out: dict[str, str]
    ending: str
    margin: float
    seconds: float
    runs: dict[str, list[TrainingRun]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "arm": "its name",
        "seed": "of the training",
        "step": "optimiser steps done",
        "loss": "held-out loss, nats per labelled token (per sample, for classification)",
        "seconds": "that this training had taken",
        "parameters": "trained",
        "learning_rate": "peak learning rate",
    }
    difference_columns: ClassVar[dict[str, str]] = {
        "step": "optimiser steps done",
        "arm": "its name",
        "other": "the arm that it is compared with",
        "difference": "loss of the other minus that of the arm, mean over seeds and samples: nats, above 0 is better",
        "low": "lower end of the interval that this look may use",
        "high": "upper end",
        "verdict": "ahead, behind, no difference (larger than the margin), or not decided",
    }

    @property
    def ranked(self) -> list[str]:
        """The arms by their held-out loss at the last look at which they were there; those that are out come last."""
        means = self.losses.mean((2, 3)).numpy()
        last = {
            name: next((float(mean) for mean in means[::-1, a] if np.isfinite(mean)), np.inf)
            for a, name in enumerate(self.arms)
        }
        return sorted(self.arms, key=lambda name: (name in self.out, last[name]))

    @property
    def leader(self) -> str:
        """The arm with the lowest held-out loss at the last look; whether it is ahead is what `sentence` says."""
        return self.ranked[0]

    @property
    def winner(self) -> TrainingRun:
        """The leader's training with the first seed: ``race.winner.save(folder)`` writes its adapter.

        Raises
        ------
        ValueError
            If the race is still going on, or its runs were taken out.
        """
        if not self.runs:
            raise ValueError("the race is still going on, or was kept without its runs: there is no adapter to save")
        return self.runs[self.leader][0]

    @property
    def is_ahead(self) -> bool:
        """Whether the leader is ahead of all others that are still there."""
        others = [name for name in self.arms if name not in (self.leader, *self.out)]
        return bool(others) and all(self._verdict(self.leader, name)[1] == AHEAD for name in others)

    @property
    def sentence(self) -> str:
        """What the race has found, and what that is for: ``finding (basis)``."""
        return f"{self.finding} ({self.basis})"

    @property
    def finding(self) -> str:
        """What is known of each pair of up to three arms; of more, of the leader and each other arm."""
        first, *others = self.ranked
        pairs = combinations(self.ranked, 2) if len(self.arms) <= 3 else [(first, other) for other in others]
        return "; ".join(self._clause(*pair) for pair in pairs if pair[0] == first or not self.out.keys() & set(pair))

    @property
    def basis(self) -> str:
        """After how many steps that was found, for which seeds and samples, and from how many."""
        done, samples = self.looks[-1], self.losses.shape[-1]
        level = f"{100 * self.meta.recipe['confidence']:g} % intervals for other"
        after = f"after {done} of {self.steps} steps" if done < self.steps else f"{done} steps"
        if len(self.seeds) == 1:
            these = "they say which of these adapters is better, not which way of making one"
            return f"{after}, {level} samples, from one seed and {samples} held-out samples: {these}"
        return f"{after}, {level} seeds and samples, from {len(self.seeds)} seeds and {samples} held-out samples"

    def to_frame(self) -> pd.DataFrame:
        """One row an arm, seed and look; see ``columns``."""
        rows = [
            (arm, seed, step, loss, seconds, self.parameters[arm], self.learning_rates[arm])
            for a, arm in enumerate(self.arms)
            for i, seed in enumerate(self.seeds)
            for step, loss, seconds in zip(
                self.looks, self.losses[:, a, i].mean(-1).tolist(), self.clock[:, a, i].tolist(), strict=True
            )
            if loss == loss  # not NaN
        ]
        return pd.DataFrame(rows, columns=list(self.columns))

    def differences(self) -> pd.DataFrame:
        """Paired differences of all pairs at each look but the first; see ``difference_columns``."""
        rows = []
        for k, step in enumerate(self.looks[1:], 1):
            for arm, other in combinations(self.arms, 2):
                found = self._interval(k, arm, other)
                rows.append((step, arm, other, *found, self._read(found, k)))
        return pd.DataFrame(rows, columns=list(self.difference_columns))

    def _interval(self, look: int, arm: str, other: str) -> Interval:
        return paired_interval(self._paired(look, arm, other), self._error(look))

    def _paired(self, look: int, arm: str, other: str) -> np.ndarray:
        a, b = self.arms.index(arm), self.arms.index(other)
        return (self.losses[look, b] - self.losses[look, a]).numpy()

    def _error(self, look: int) -> float:
        """What one pair may spend."""
        return self.errors[look] / (len(self.arms) * (len(self.arms) - 1) / 2)

    def _read(self, found: Interval, look: int) -> str:
        if found.low > 0:
            return AHEAD
        if found.high < 0:
            return BEHIND
        # At the beginning there is never a difference: that there is none is a finding of the end.
        at_the_end = self.looks[look] == self.steps or (self.ending == "time" and look == len(self.looks) - 1)
        return SAME if at_the_end and -self.margin <= found.low and found.high <= self.margin else OPEN

    def _verdict(self, arm: str, other: str) -> tuple[int, str, Interval]:
        """At the last look at which both were there; look 0 where there is none."""
        for look in range(len(self.looks) - 1, 0, -1):
            found = self._interval(look, arm, other)
            if np.isfinite(found.low):
                return look, self._read(found, look), found
        return 0, OPEN, Interval(np.nan, np.nan, np.nan)

    def _clause(self, better: str, other: str) -> str:
        """What is known of a pair, the one with the lower loss first."""
        why = self.out.get(other, "")
        look, verdict, found = self._verdict(better, other)
        if why and (not look or why.startswith("diverged")):
            return f"{other} {why}"
        pair, until = f"{better} and {other}", f"{other} {why}; before that, " if why else ""
        if not look:
            return f"{pair}: not decided, as the race ended before its first look"
        if verdict == AHEAD:
            return f"{until}{better} is ahead of {other} by {_between(found.low, found.high)}"
        if verdict == BEHIND:
            return f"{until}{other} is ahead of {better} by {_between(-found.high, -found.low)}"
        if verdict == SAME:
            return f"{until}no difference larger than {self.margin:g} nats between {pair}"
        more = more_needed(self._paired(look, better, other), self._error(look), self.margin)
        return f"{until}{pair}: not decided ({_between(found.low, found.high)}), {more} would be needed"

    def _summary(self) -> str:
        return f"{self.sentence}; {ENDINGS[self.ending]}, {self.seconds:.3g} s"


def _between(low: float, high: float) -> str:
    """Two losses apart, with as many digits as tell them from zero and from each other: ``"0.03 to 0.09 nats"``."""
    least = min(x for x in (abs(low), abs(high), high - low, 1.0) if x > 0)
    digits = min(6, max(2, 1 - int(np.floor(np.log10(least)))))
    return f"{low:.{digits}f} to {high:.{digits}f} nats"
