"""The trainers that people bring along: that of transformers by hand, and TRL's for supervised tuning and preferences.

Each is used as its own documentation says, gradient checkpointing included, which TRL switches on by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

# What TRL and transformers ask each other, or torch, by names that are going out of use.
THEIR_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*_checkpointing.* is deprecated:FutureWarning",
    "ignore:'pin_memory' argument is set:UserWarning",
)

Texts = list[tuple[str, str, str]]
"""Of each sample a prompt, the completion to learn, and a worse one."""


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Training arguments that all of them take; TRL's default of bf16 is not for the CPU."""
    values = {"output_dir": str(folder), "learning_rate": 0.02, "max_steps": 8, "logging_steps": 1}
    return values | {"report_to": "none", "bf16": False, "disable_tqdm": True} | more


def by_hand(model: Any, tokenizer: Any, texts: Texts, folder: Path, callbacks: Any = (), **more: Any) -> Trainer:
    """The Trainer of transformers on tokenized rows."""
    rows = []
    for prompt, completion, _ in texts:
        start, end = tokenizer(prompt).input_ids, [*tokenizer(completion).input_ids, tokenizer.eos_token_id]
        rows.append({"input_ids": start + end, "labels": [-100] * len(start) + end})
    data, collate = Dataset.from_list(rows), DataCollatorForSeq2Seq(tokenizer)
    arguments = TrainingArguments(**settings(folder, **more))
    return Trainer(model, arguments, collate, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))


def sft(model: Any, tokenizer: Any, texts: Texts, folder: Path, callbacks: Any = (), **more: Any) -> SFTTrainer:
    """TRL's supervised fine-tuning."""
    data = Dataset.from_list([{"prompt": prompt, "completion": good} for prompt, good, _ in texts])
    arguments = SFTConfig(**settings(folder, **more))
    return SFTTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer, callbacks=list(callbacks)
    )


def dpo(model: Any, tokenizer: Any, texts: Texts, folder: Path, **more: Any) -> DPOTrainer:
    """TRL's direct preference optimization; the reference is a frozen copy of the adapter that it adds itself."""
    data = Dataset.from_list([{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in texts])
    arguments = DPOConfig(**settings(folder, **more))
    return DPOTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)


TRAINERS: dict[str, Callable[..., Trainer]] = {"by hand": by_hand, "SFTTrainer": sft, "DPOTrainer": dpo}
each_trainer = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)


def losses(trainer: Trainer) -> list[float]:
    """Training loss of each logged step, in order."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """All of a model but DPO's reference, which is a copy."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".ref." not in name}


def changed(model: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in tensors(model).items() if not torch.equal(tensor, before[name])}


def every_b(model: torch.nn.Module) -> set[str]:
    return {name for name in tensors(model) if "lora_B" in name}
