"""What PEFT wraps a model in, and how it comes off again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def wrappers(base: nn.Module) -> dict[str, Any]:
    """What PEFT has wrapped layers and modules in, by their names; of wrappers inside each other the outermost."""
    found: dict[str, Any] = {}
    for name, module in base.named_modules():
        inside = found and name.startswith(f"{next(reversed(found))}.")
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found[name] = module
    return found


def unwrap(base: nn.Module, kept: Collection[str] = ()) -> None:
    """Put the base's own layers and modules back in the place of `wrappers`, but for those at some names."""
    for name, module in wrappers(base).items():
        if name in kept:
            continue
        inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, inner)


def taking_off(model: PeftModel, name: str) -> Callable[[], None]:
    """What takes one more adapter off again, with all that it brought, and puts back which are active and trainable.

    Parameters
    ----------
    model : peft.PeftModel
        As it is before that adapter is put on.
    name : str
        Of that adapter; where it never came so far, what there is of it goes.
    """
    base, active = model.get_base_model(), model.active_adapter
    before, trainable = wrappers(base), [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def take_off() -> None:
        model.set_adapter(active)  # first: PEFT warns when it deletes the active one
        if name in model.peft_config:
            model.delete_adapter(name)
        unwrap(base, kept=before)
        for parameter, required in trainable:
            parameter.requires_grad_(required)

    return take_off
