"""Models that are padded with another token than their own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.helpers.models import tiny_batch, tiny_config


def classifier(config: transformers.PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def decoder(family: str, pad: int = 3) -> Any:
    """A classifier that finds the end of a text by a padding token; texts are padded with 0."""
    return classifier(tiny_config(family, num_labels=2, pad_token_id=pad))


def texts(lengths: tuple[int, ...], padding: str = "right") -> dict[str, torch.Tensor]:
    """A batch that is padded with 0, with a class for each sample."""
    return tiny_batch("bert", lengths, padding)
