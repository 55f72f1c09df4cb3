"""Adapters that other trainers made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from tests.helpers.models import tiny_batch, tiny_model

BATCH = tiny_batch("llama")

PARTS = {"bias": {"bias": "lora_only"}, "weights": {"init_lora_weights": "pissa"}}


def biased(**config: Any) -> Any:
    return tiny_model("llama", attention_bias=True, **config)


def foreign(base: Any, folder: Path | None = None, **config: Any) -> PeftModel:
    """An adapter whose every trained number was moved, and saved."""
    model = get_peft_model(base, LoraConfig(**({"r": 2, "target_modules": ["q_proj", "v_proj"]} | config))).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    if folder is not None:
        model.save_pretrained(folder, save_embedding_layers=False)
    return model


def tied(**config: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        return foreign(tiny_model("llama", tie_word_embeddings=True), **config)


def experts(**config: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes | heads)).eval()
