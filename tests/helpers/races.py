"""Races between tiny adapters, and results of races made by hand."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel

import tlora
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tlora.comparison.methods import Job, Method
from tlora.comparison.race_result import Race
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


def started_elsewhere(name: str, allocation: tlora.Allocation, shift: int) -> Method:
    """An allocation whose random ``A`` is that of another seed, so that two equal ones differ as two seeds do."""
    return Method(name, partial(_attached, allocation, shift))


def _attached(allocation: tlora.Allocation, shift: int, job: Job) -> PeftModel:
    return tlora.attach(job.model, None, allocation, seed=job.seed + shift)


def raced(means: dict[str, float], *, noise: float = 0.01, samples: int = 40, **changes: Any) -> Race:
    """A race made by hand from mean losses at the end; samples differ much, and seeds a little."""
    seeds, looks = changes.pop("seeds", [0, 1, 2]), changes.pop("looks", [0, 5, 10])
    rng = np.random.default_rng(0)
    hard = rng.normal(2, 0.5, samples)
    hard += 2 - hard.mean()
    losses = np.empty((len(looks), len(means), len(seeds), samples))
    for k, step in enumerate(looks):
        for a, mean in enumerate(means.values()):
            own = rng.normal(0, noise, (len(seeds), samples)) + rng.normal(0, noise / 10, (len(seeds), 1))
            losses[k, a] = hard + (mean - 2) * step / 10 + own * (step > 0)
    clock = np.broadcast_to(np.array(looks, float)[:, None, None], losses.shape[:3]).copy()
    recipe = {"confidence": changes.pop("confidence", 0.95)}
    values: dict[str, Any] = {
        "arms": list(means),
        "seeds": seeds,
        "steps": 10,
        "looks": looks,
        "errors": [0.0, 0.01, 0.04][: len(looks)],
        "losses": torch.from_numpy(losses),
        "clock": torch.from_numpy(clock),
        "learning_rates": dict.fromkeys(means, 1e-3),
        "parameters": {name: 100 * (a + 1) for a, name in enumerate(means)},
        "ladder": [],
        "out": {},
        "ending": "done",
        "margin": 0.02,
        "seconds": 12.5,
        "runs": {},
        "meta": Meta("tiny", "pairs", recipe, 0, samples),
    }
    return Race(**values | changes)
