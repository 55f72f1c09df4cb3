"""A base of which accelerate keeps layers elsewhere than they compute (``device_map="auto"``), and adapters on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


@contextlib.contextmanager
def place_stand_ins(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Have weights that are elsewhere look as if they were where they compute, for PEFT to put an adapter there.

    What stands in has the shape of the weight and the memory of one number. PEFT would put the adapter where the weight
    is, which is nowhere, and would give the whole model other places.

    Parameters
    ----------
    model : torch.nn.Module
        The base.
    names : iterable of str
        Full names of the modules that get an adapter; others than its own are passed over.
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
                one = torch.zeros((), dtype=weight.dtype, device=hook.execution_device)
                module.register_parameter(key, nn.Parameter(one.expand(weight.shape), weight.requires_grad))
    places = vars(model).pop("hf_device_map", None)
    try:
        yield
    finally:
        for module, key, weight in kept:
            weight.requires_grad_(module.get_parameter(key).requires_grad)
            module.register_parameter(key, weight)
        if places is not None:
            vars(model)["hf_device_map"] = places


def refuse_offloaded(parameters: Iterable[tuple[str, Tensor]], what: str = "trained whole") -> None:
    """Refuse parameters that an adapter trains or writes to themselves, such as a head's, where they are not here.

    Raises
    ------
    ValueError
        If one is elsewhere, with the name of its module and what is done to it.
    """
    for name, parameter in parameters:
        if parameter.is_meta:
            module = name.partition(".modules_to_save.")[0].removesuffix(".weight").removesuffix(".bias")
            raise ValueError(
                f"{module} is {what}, and its weights are offloaded: load the base with a device_map that keeps it "
                "where it computes"
            )
