"""Tiny adapted models made with PEFT alone, and rows to train them on."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.helpers.models import tiny_model

TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "output.dense"],
    "t5": ["q", "wo"],
}


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """The Trainer collects garbage when it starts, and the libraries alone are a million objects."""
    gc.freeze()
    yield
    gc.unfreeze()


def adapted_model(family: str = "llama", *, seed: int = 0, declare_frozen: bool = True, **config: Any) -> PeftModel:
    """A tiny model with a LoRA adapter whose ranks and scalings differ by layer, A frozen, B zero."""
    task = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(family, "CAUSAL_LM")
    base = tiny_model(family, seed=seed)
    values = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": TARGETS[family],
        "rank_pattern": {r"^.*\.1\..*$": 3},
        "alpha_pattern": {r"^.*\.1\..*$": 7.5},
        "task_type": task,
        "fan_in_fan_out": family == "gpt2",
    } | config
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # PEFT asks transformers under a name that is going out of use.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(base, LoraConfig(**values))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].requires_grad_(False)
            if declare_frozen:
                layer.frozen_peft_weight_names = {"default": ("lora_A",)}
    return model


def token_rows(count: int = 16, *, seed: int = 0, classes: int = 0) -> Dataset:
    """Rows of 4 to 8 random tokens, the first a prompt; with ``classes`` a class in place of labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(count):
        ids = torch.randint(3, 64, (4 + n % 5,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": n % classes if classes else [-100, *ids[1:]]})
    return Dataset.from_list(rows)
