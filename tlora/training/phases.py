"""Parts of an adapter that are trained in their own way: the rates of ``A`` and of a head, and how long ``A`` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tlora.adapters.lora_layers import head_parameters, lora_modules
from tlora.utils.validation import fraction, positive


@dataclass(frozen=True)
class TrainingPhases:
    """How ``A`` and a head are trained, where it is not as all the rest.

    Attributes
    ----------
    a_learning_rate, head_learning_rate : float or None
        Peak learning rates; None for that of all the rest.
    freeze_a_after : float or None
        Part of all steps after which ``A`` stays as it is; None for never.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.
    """

    a_learning_rate: float | None = None
    head_learning_rate: float | None = None
    freeze_a_after: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.record().items():
            (fraction if name == "freeze_a_after" else positive)(name, value)

    def check(self, model: PeftModel) -> None:
        """Refuse a number for a part that is not trained.

        Raises
        ------
        ValueError
            Naming the argument.
        """
        for name, value in self.record().items():
            members, way = _PARTS[name]
            if not members(model):
                raise ValueError(f"{name}={value} is for what is not trained in this model: {way}")

    def set_rates(self, optimizer: torch.optim.Optimizer, model: PeftModel) -> None:
        """Give the parts groups of their own in an optimizer that has no state yet; the other options stay.

        A learning rate schedule multiplies the rate of each group by the same factor.
        """
        for rate, members in ((self.a_learning_rate, _a), (self.head_learning_rate, head_parameters)):
            ids = set() if rate is None else set(map(id, members(model)))
            for group in list(optimizer.param_groups):
                if taken := [p for p in group["params"] if id(p) in ids]:
                    group["params"] = [p for p in group["params"] if id(p) not in ids]
                    optimizer.add_param_group({**group, "params": taken, "lr": rate})

    def callbacks(self) -> list[TrainerCallback]:
        """What has to happen in the course of training."""
        return [] if self.freeze_a_after is None else [_FreezeALate(self.freeze_a_after)]

    def record(self) -> dict[str, Any]:
        """By name what is not as all the rest."""
        return {name: value for name, value in vars(self).items() if value is not None}


def _a(model: PeftModel) -> list[torch.Tensor]:
    return [module.a for module in lora_modules(model).values() if module.a.requires_grad]


_FROZEN = "attach the adapter with freeze_a=False"
_PARTS: dict[str, tuple[Callable[[PeftModel], Sequence[torch.Tensor]], str]] = {
    "a_learning_rate": (_a, _FROZEN),
    "freeze_a_after": (_a, _FROZEN),
    "head_learning_rate": (head_parameters, "only a model for classification has a head"),
}
"""What each argument is for, and what to do where that is not trained."""


class _FreezeALate(TrainerCallback):
    """Takes the gradient of ``A`` away for the rest of a training; afterwards it may be trained again."""

    def __init__(self, part: float) -> None:
        self.part = part

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= math.ceil(self.part * state.max_steps):
            for parameter in _a(kwargs["model"]):
                parameter.requires_grad_(False)
                parameter.grad = None
