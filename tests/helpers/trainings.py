"""Trainings that stop, and what a model is in before and after."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from tests.helpers.adapted import adapted_model


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
