"""Training phases: learning rates of ``A`` and of a head of their own, and when ``A`` is frozen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from tlora.adapters.lora_layers import head_parameters, lora_parameters
from tlora.utils.devices import on_host
from tlora.utils.validation import require_fraction, require_positive

OF_A = ("a_learning_rate", "freeze_a_after")
"""Options that need an ``A`` that is trained."""


@dataclass(frozen=True)
class TrainingPhases:
    """Options of `train` for ``A`` and a head that differ from those for ``B``; None if they do not."""

    a_learning_rate: float | None = None
    head_learning_rate: float | None = None
    freeze_a_after: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.options().items():
            (require_fraction if name == "freeze_a_after" else require_positive)(value, name)
        if self.freeze_a_after in (0, 1):
            raise ValueError(
                f"freeze_a_after={self.freeze_a_after}: take a share of the steps above 0 and below 1; freeze_a= of "
                "attach freezes A from the start, or never"
            )

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
    return [a for a, _ in lora_parameters(model).values() if a.requires_grad]


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
        self.start: torch.Tensor | None = None  # sums of each ``A``

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self._step(state)
        if step >= state.max_steps:
            warnings.warn(
                f"freeze_a_after={self.part} freezes A after step {step} of {state.max_steps}, so it is trained to the "
                "end: take more steps, or a smaller share",
                stacklevel=1,  # in this package, so that the command line shows it
            )
        self.start = _sums(kwargs["model"]) if state.global_step < step else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self._step(state):
            return
        model = kwargs["model"]
        if self.start is not None and torch.equal(self.start, _sums(model)):
            warnings.warn(
                f"freeze_a_after={self.part} froze A after {state.global_step} of {state.max_steps} steps, before it "
                "moved: B is zero at first, and so is the learning rate of the warm-up; take more steps or a larger "
                "share, or attach with freeze_a=True",
                stacklevel=1,
            )
        self.start = None
        for parameter in _trained_a(model):
            parameter.requires_grad_(False)
            parameter.grad = None

    def _step(self, state: Any) -> int:
        return math.ceil(self.part * state.max_steps)


def _sums(model: PeftModel) -> torch.Tensor:
    """The sum of each trained ``A``, which changes as soon as it does."""
    return torch.stack(on_host(a.detach().double().sum() for a in _trained_a(model)))
