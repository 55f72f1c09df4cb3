"""Short trainings, tasks and callbacks for them, and what a model is in before and after."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tlora.training.dataset import Rows


def state_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


def two_adapters(keep: bool = True) -> PeftModel:
    """``default``, with a B of its own, and ``second``, which is active."""
    model = adapted_model()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # PEFT draws A of the second
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(0, 0.5)
        model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    if not keep:
        model.delete_adapter("default")
    return model


def train(*callbacks: Any, steps: int = 6, **arguments: Any) -> tlora.TrainingRun:
    """A few steps on random tokens."""
    fixed = {"batch_size": 4, "evaluation_limit": 0, "progress": False}
    return tlora.train(adapted_model(), token_rows(), max_steps=steps, callbacks=callbacks, **fixed, **arguments)


@dataclass(frozen=True)
class HeldOut:
    """What `train` asks of a task: splits, a name, batches, and a metric."""

    __class__ = tlora.Task  # type: ignore[assignment]  # it stands for one

    train: Dataset
    validation: Dataset
    test: Dataset
    name: str = "random tokens"

    def collate(self, examples: Any) -> dict[str, torch.Tensor]:
        return Rows(self.train, 0).collate(examples)

    def evaluate(self, model: Any, split: str, limit: int | None, *, progress: bool) -> dict[str, float]:
        return {f"{split} {progress}": math.inf if limit is None else float(limit)}


def held_out(kind: type[HeldOut] = HeldOut, test: int = 4) -> Any:
    return kind(token_rows(), token_rows(8, seed=1), token_rows(8, seed=2).select(range(test)))


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model
