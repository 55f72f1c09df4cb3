"""Training phases: learning rates of ``A`` and of a head of their own, and when ``A`` is frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from tlora.adapters.lora_layers import head_parameters, lora_updates
from tlora.utils.validation import require_fraction, require_positive


@dataclass(frozen=True)
class TrainingPhases:
    """Options of `train` for ``A`` and a head that differ from those for ``B``; None if they do not."""

    a_learning_rate: float | None = None
    head_learning_rate: float | None = None
    freeze_a_after: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.options().items():
            (require_fraction if name == "freeze_a_after" else require_positive)(value, name)

    def check(self, model: PeftModel) -> None:
        """Refuse an option for parameters that are not trained."""
        for name, value in self.options().items():
            parameters, way_out = _PARAMETERS[name]
            if not parameters(model):
                raise ValueError(f"{name}={value} is for parameters that this model does not train: {way_out}")

    def set_rates(self, optimizer: torch.optim.Optimizer, model: PeftModel) -> None:
        """Give ``A`` and the head groups of their own in an optimizer that has no state yet.

        A learning rate schedule multiplies the rate of each group by the same factor.
        """
        for rate, parameters in ((self.a_learning_rate, _trained_a), (self.head_learning_rate, head_parameters)):
            ids = set() if rate is None else set(map(id, parameters(model)))
            for group in list(optimizer.param_groups):
                if moved := [p for p in group["params"] if id(p) in ids]:
                    group["params"] = [p for p in group["params"] if id(p) not in ids]
                    optimizer.add_param_group({**group, "params": moved, "lr": rate})

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks for the Trainer."""
        return [] if self.freeze_a_after is None else [_FreezeALate(self.freeze_a_after)]

    def options(self) -> dict[str, Any]:
        """Return the options that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _trained_a(model: PeftModel) -> list[torch.Tensor]:
    return [update.a for update in lora_updates(model).values() if update.a.requires_grad]


_PARAMETERS: dict[str, tuple[Callable[[PeftModel], Sequence[torch.Tensor]], str]] = {
    "a_learning_rate": (_trained_a, "attach the adapter with freeze_a=False"),
    "freeze_a_after": (_trained_a, "attach the adapter with freeze_a=False"),
    "head_learning_rate": (head_parameters, "only a model for classification has a head"),
}
"""The parameters that each option is for, and what to do if they are not trained."""


class _FreezeALate(TrainerCallback):
    """Freezes ``A`` for the rest of a training; afterwards it may be trained again."""

    def __init__(self, part: float) -> None:
        self.part = part

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= math.ceil(self.part * state.max_steps):
            for parameter in _trained_a(kwargs["model"]):
                parameter.requires_grad_(False)
                parameter.grad = None
