"""Races between tiny adapters, and results of races made by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from peft import PeftModel

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tlora.comparison import race as module
from tlora.comparison.arms import Trainee
from tlora.comparison.race_result import Race
from tlora.models.weights import copy_sharing_weights
from tlora.results import Meta


@cache
def allocations(rank: int = 2) -> dict[str, tlora.Allocation]:
    """By score and uniform."""
    calibration = tlora.calibrate(tiny_model("llama"), task().calibration(4), progress=False)
    options = {"rank": rank, "max_rank": 8}
    return {
        "score": tlora.allocate(calibration.sensitivity, **options),
        "uniform": tlora.allocate(calibration.sensitivity, adapt_ranks=False, adapt_scales=False, **options),
    }


def let_equal_arms_differ(monkeypatch: Any) -> None:
    """Have the random ``A`` of a race's second arm start from other seeds, so that equal arms differ as seeds do."""

    def make_trainees(model: Any, task: Any, arms: Any, *rest: Any) -> dict[str, Trainee]:
        def trainee(allocation: tlora.Allocation, shift: int) -> Trainee:
            def adapt(seed: int) -> PeftModel:
                return tlora.attach(copy_sharing_weights(model), None, allocation, seed=seed + shift)

            return Trainee(adapt)

        return {name: trainee(arm, 100_000 * i) for i, (name, arm) in enumerate(arms.items())}

    monkeypatch.setattr(module, "make_trainees", make_trainees)


def make_race(means: dict[str, float], *, noise: float = 0.01, samples: int = 40, **changes: Any) -> Race:
    """A race made by hand from mean losses at the end; samples differ much, and seeds a little."""
    seeds, evaluated = changes.pop("seeds", [0, 1, 2]), changes.pop("evaluated", [0, 5, 10])
    rng = np.random.default_rng(0)
    difficulty = rng.normal(2, 0.5, samples)
    difficulty += 2 - difficulty.mean()
    losses = np.empty((len(evaluated), len(means), len(seeds), samples))
    for k, step in enumerate(evaluated):
        for a, mean in enumerate(means.values()):
            own = rng.normal(0, noise, (len(seeds), samples)) + rng.normal(0, noise / 10, (len(seeds), 1))
            losses[k, a] = difficulty + (mean - 2) * step / 10 + own * (step > 0)
    clock = np.broadcast_to(np.array(evaluated, float)[:, None, None], losses.shape[:3]).copy()
    values: dict[str, Any] = {
        "arms": list(means),
        "seeds": seeds,
        "steps": 10,
        "evaluated": evaluated,
        "losses": torch.from_numpy(losses),
        "clock": torch.from_numpy(clock),
        "learning_rates": dict.fromkeys(means, 1e-3),
        "parameters": {name: 100 * (a + 1) for a, name in enumerate(means)},
        "search": [],
        "diverged": {},
        "interrupted": False,
        "margin": 0.02,
        "confidence": 0.95,
        "seconds": 12.5,
        "meta": Meta("tiny", "pairs", {}, 0, samples),
    }
    return Race(**values | changes)
