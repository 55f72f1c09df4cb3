"""Sensitivities made by hand, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.helpers.targets import named, target
from tlora.calibration.sensitivity import Sensitivity
from tlora.results import Meta

LLAMA_2_7B = {
    "q_proj": (4096, 4096),
    "k_proj": (4096, 4096),
    "v_proj": (4096, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (11008, 4096),
    "up_proj": (11008, 4096),
    "down_proj": (4096, 11008),
}


def sensitivity(
    scores: Sequence[float] | Sequence[Sequence[float]] | np.ndarray,
    shapes: Sequence[tuple[int, int]] | tuple[int, int] = (64, 64),
    projections: Sequence[str] = ("q_proj", "k_proj", "down_proj"),
) -> Sensitivity:
    """A sensitivity of ``(N, M)`` scores, or of ``M``: modules are named ``layers.<layer>.<projection>``."""
    per_sample = torch.tensor(np.atleast_2d(np.asarray(scores)), dtype=torch.float32)
    count = per_sample.shape[1]
    layers = [i // len(projections) for i in range(count)]
    roles = [projections[i % len(projections)] for i in range(count)]
    each: list[Any] = [shapes] * count if isinstance(shapes[0], int) else list(shapes)
    places = zip(layers, roles, each, strict=True)
    targets = named(*(target(f"layers.{layer}.{role}", layer, role, shape) for layer, role, shape in places))
    meta = Meta("tiny", "task", {"tokens": "all"}, seed=0, samples=len(per_sample), versions={"torch": "1"})
    return Sensitivity(targets, per_sample, meta)


def llama_sensitivity(samples: int = 1, seed: int = 0) -> Sensitivity:
    """Log-normal scores, of which each sample is a noisy copy, for the 224 modules of LLaMA-2-7B."""
    generator = np.random.default_rng(seed)
    scores = np.exp(generator.normal(size=224)) * generator.gamma(4, size=(samples, 224))
    return sensitivity(scores, list(LLAMA_2_7B.values()) * 32, list(LLAMA_2_7B))
