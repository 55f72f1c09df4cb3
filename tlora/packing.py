"""What bitsandbytes does to its layers on a CPU: 4-bit ones lose their gradient, 8-bit ones their scales."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

# Whether a layer packs itself when it is first used for inference; found on the CPU's features, read at every call.
_SWITCH = "support_avx512bf16_for_cpu"


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weight was packed, which cannot be undone."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def refuse_packed(model: nn.Module) -> None:
    """Raise where a gradient would be lost without a word.

    Raises
    ------
    ValueError
        If a layer was packed.
    """
    for name, module in model.named_modules():
        if is_packed(module):
            raise ValueError(
                f"bitsandbytes has packed {name} for inference on this CPU, and no gradient passes through it any "
                "more: load the model again, and calibrate and train before it is evaluated or generates anything"
            )


@contextlib.contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Within the block no 4-bit layer packs itself, whatever it is used for, and 8-bit ones can be moved."""
    able = [module for module in model.modules() if getattr(module, _SWITCH, False)]
    _keep_scales(model)
    try:
        for module in able:
            setattr(module, _SWITCH, False)
        yield
    finally:
        for module in able:
            setattr(module, _SWITCH, True)


def _keep_scales(model: nn.Module) -> None:
    """Give 8-bit weights their scales back: a layer that was used holds them in its state, and moving loses them."""
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(module, "state", None)
        if type(weight).__name__ == "Int8Params" and state is not None and weight.SCB is None:
            weight.SCB = state.SCB
