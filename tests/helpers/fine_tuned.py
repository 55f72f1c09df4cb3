"""A tiny model after a fine-tune of all weights, made of random changes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.helpers.models import tiny_model
from tlora.models.targets import target_modules


def fine_tune(
    family: str = "llama", *, rank: int | None = None, others: bool = False, size: float = 0.02, **config: Any
) -> PreTrainedModel:
    """The tiny model with each linear weight changed, by a matrix of this rank, and if asked all other parameters."""
    model = tiny_model(family, **config)
    generator = torch.Generator().manual_seed(7)
    inside = {f"{name}.weight" for name in target_modules(model)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in inside:
                inner = rank or min(parameter.shape)
                columns = torch.randn(len(parameter), inner, generator=generator)
                parameter += size * columns @ torch.randn(inner, parameter.shape[1], generator=generator) / inner**0.5
            elif others:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model
