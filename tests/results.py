"""One small example of every kind of result: what the contract test runs over.

A new result class adds a builder to `EXAMPLES`; a test fails until it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch

from tlora.sensitivity import Sensitivity
from tlora.storage import Meta, Result

META = Meta(model="tiny-llama", task="family_relationships", recipe={"tokens": "all"}, seed=3, samples=4)
# Not in alphabetical order: a format that sorted the modules would be noticed.
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
SHAPES = dict(zip(NAMES, ((8, 8), (8, 12), (8, 12)), strict=True))
LAYERS = dict(zip(NAMES, (0, 0, 1), strict=True))
PROJECTIONS = dict(zip(NAMES, ("q_proj", "down_proj", "down_proj"), strict=True))


def sensitivity(samples: int = 4) -> Sensitivity:
    """Positive scores of a fixed seed, each module's larger than the one before."""
    noise = torch.rand(samples, len(NAMES), generator=torch.Generator().manual_seed(0))
    return Sensitivity(noise + torch.tensor([1.0, 2.0, 3.0]), SHAPES, LAYERS, PROJECTIONS, META)


EXAMPLES: dict[str, Callable[[], Result]] = {"Sensitivity": sensitivity}


def same(one: Any, other: Any) -> bool:
    """Whether two results, or any of their parts, are equal, down to dtypes and the order of keys."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, pd.DataFrame | pd.Series):
        return one.equals(other)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
