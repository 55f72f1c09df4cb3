"""Adapters on a base whose layers accelerate keeps on the CPU or the disk (``device_map="auto"``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


@contextlib.contextmanager
def place_stand_ins(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside the block, replace offloaded weights by stand-ins on the device that computes, for PEFT to adapt.

    A stand-in has the shape of the weight and the memory of one number. Without it PEFT would put the adapter on the
    meta device, and would move the whole model. Unknown ``names`` are ignored.
    """
    modules, kept = dict(model.named_modules()), []
    for name in names:
        module: Any = modules.get(name)
        module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        hook = getattr(module, "_hf_hook", None)
        if hook is None:
            continue
        for key, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:
                kept.append((module, key, weight))
                stand_in = torch.zeros((), dtype=weight.dtype, device=hook.execution_device)
                module.register_parameter(key, nn.Parameter(stand_in.expand(weight.shape), weight.requires_grad))
    places = vars(model).pop("hf_device_map", None)
    try:
        yield
    finally:
        for module, key, weight in kept:
            weight.requires_grad_(module.get_parameter(key).requires_grad)
            module.register_parameter(key, weight)
        if places is not None:
            vars(model)["hf_device_map"] = places


def refuse_offloaded(parameters: Iterable[tuple[str, Tensor]], use: str = "trained whole") -> None:
    """Refuse offloaded parameters that would be trained or written to themselves, such as those of a head."""
    for name, parameter in parameters:
        if parameter.is_meta:
            module = name.partition(".modules_to_save.")[0].removesuffix(".weight").removesuffix(".bias")
            raise ValueError(
                f"{module} is {use}, and its weights are offloaded: load the base with a device_map that keeps it "
                "on the device that computes"
            )
