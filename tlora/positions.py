"""How many tokens a model reads at once, by its config and by its tables of learnt positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tlora.checks import base_of

_TABLE = re.compile(r"(position[^.]*|wpe)$")  # ends the names of tables of learnt positions
_UNLIMITED = 2**30
"""A tokenizer that was never told how much its model reads says more than this."""


def most_tokens(model: nn.Module) -> tuple[int, str] | None:
    """Tokens that the smallest table of learnt positions has room for, and its name; None where there is none."""
    asked = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _TABLE.search(name):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            room = module.num_embeddings - unused
            found.append((min(room, asked or room), name))
    return min(found, default=None)


def check_width(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse more tokens than positions that were learnt: torch would tell of an index out of range.

    Parameters
    ----------
    batch : mapping
        ``input_ids`` (B, T), and ``labels`` of an encoder-decoder that writes (B, T').
    model : transformers.PreTrainedModel or peft.PeftModel
        The model that will read it.

    Raises
    ------
    ValueError
        If a sample is longer.
    """
    written = [tokens for tokens in (batch.get("labels"),) if tokens is not None and tokens.ndim == 2]
    read = [batch["input_ids"], *(written if model.config.is_encoder_decoder else [])]
    width = max(tokens.shape[1] for tokens in read)
    most, table = most_tokens(base_of(model)) or (width, "")
    if width > most:
        raise ValueError(
            f"a sample has {width} tokens, and the model reads at most {most}, by {table}: load the task with "
            f"max_length={most} or less"
        )


def tell_limit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, which knows now what its model reads, if nobody had told it."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if tokenizer.model_max_length > _UNLIMITED and isinstance(most, int) and most > 1:
        tokenizer.model_max_length = most
    return tokenizer
