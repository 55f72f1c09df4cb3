"""Routed experts: which parameters hold them, and the weight of each as a linear layer of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

SKETCHED_FROM = 64
"""Experts of a layer from which on their statistics are sketched: whole covariances of 128 take over 100 GB."""

_TARGET = re.compile(r"(?P<parameter>(?P<module>.+)\.(?P<key>\w+))\[(?P<expert>\d+)\]")
_OTHER_WAY = 'choose other modules, such as target_modules="attention"'


def parameter_name(name: str) -> str:
    """The name of the parameter that holds a target: without the number of an expert."""
    return name.partition("[")[0]


def expert_names(parameter: str, count: int) -> list[str]:
    """The names of the targets that a parameter of so many experts holds."""
    return [f"{parameter}[{expert}]" for expert in range(count)]


def is_expert(name: str) -> bool:
    """Whether the name of a target is that of an expert's weight."""
    return _TARGET.fullmatch(name) is not None


def holds_experts(module: nn.Module) -> bool:
    """Whether transformers runs the module through its interface for experts, so that its rows can be observed."""
    layer: Any = module
    return all(hasattr(layer, key) for key in ("num_experts", "has_gate", "is_transposed")) and all(
        getattr(getattr(layer, key, None), "ndim", 0) == 3 for key in expert_parameters(layer)
    )


def expert_parameters(module: Any) -> tuple[str, str]:
    """The names of the two parameters of a module with experts: what it computes first, and its output."""
    return ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"), "down_proj"


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with routed experts whose rows can be observed, by full name."""
    return {name: module for name, module in model.named_modules() if holds_experts(module)}


def expert_shape(module: nn.Module, key: str) -> tuple[int, int]:
    """``(d_out, d_in)`` of one expert, however it is stored."""
    _, first, second = getattr(module, key).shape
    return (second, first) if getattr(module, "is_transposed", False) else (first, second)


def refuse_unreadable(name: str, module: Any) -> None:
    """Refuse experts whose weights are quantized or distributed."""
    if getattr(module, "_is_expert_parallel", False):
        raise ValueError(
            f"the experts of {name} are distributed over processes: load the model without, or {_OTHER_WAY}"
        )
    for key in expert_parameters(module):
        stored = getattr(module, key)
        if hasattr(stored, "ds_id") or hasattr(stored, "full_tensor"):
            raise ValueError(f"{name}.{key} is sharded: load the model whole, or {_OTHER_WAY}")
        if not stored.is_floating_point() or stored.dtype.itemsize < 2:
            raise ValueError(f"{name}.{key} is quantized ({stored.dtype}): load the model unquantized, or {_OTHER_WAY}")


def refuse_unknown_experts(model: nn.Module) -> None:
    """Refuse a model without experts, or with experts that transformers does not run through its interface."""
    for name, module in model.named_modules():
        if "expert" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower() and any(module.children()) + any(
            parameter.ndim > 1 for parameter in module.parameters(recurse=False)
        ):
            raise ValueError(
                f"the experts of {name} (a {type(module).__name__}) cannot be targets: transformers does not run them "
                f"through its interface for experts, so which rows each of them reads is unknown; {_OTHER_WAY}"
            )
    raise ValueError(f"a {type(model).__name__} has no routed experts: {_OTHER_WAY}")


def find_layer(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The linear layer of a target, among modules by full name.

    For an expert it is a new layer that shares the memory of the parameter; for a parameter of experts without a
    number it is the first of them.
    """
    if (module := modules.get(name)) is not None:
        return module
    match = _TARGET.fullmatch(name) or _TARGET.fullmatch(f"{name}[0]")
    holder = modules.get(match["module"]) if match is not None else None
    if match is None or holder is None or not holds_experts(holder) or match["key"] not in expert_parameters(holder):
        raise KeyError(name)
    stored, expert = holder.get_parameter(match["key"]).detach(), int(match["expert"])
    if expert >= len(stored):
        raise KeyError(name)
    d_out, d_in = expert_shape(holder, match["key"])
    layer = nn.Linear(d_in, d_out, bias=False, device="meta")
    part = stored[expert]
    layer.weight = nn.Parameter(part.T if getattr(holder, "is_transposed", False) else part, requires_grad=False)
    return layer


class Layers(dict[str, nn.Module]):
    """Modules by full name, which also finds the layers of experts by the names of their targets."""

    def __missing__(self, name: str) -> nn.Module:
        return find_layer(self, name)

    def __contains__(self, name: object) -> bool:
        try:
            return super().__contains__(name) or find_layer(self, str(name)) is not None
        except KeyError:
            return False


def model_layer(model: nn.Module, name: str) -> nn.Module:
    """The linear layer of a target of a model without an adapter."""
    match = _TARGET.fullmatch(name)
    if match is None:
        return model.get_submodule(name)
    return find_layer({match["module"]: model.get_submodule(match["module"])}, name)


def refuse_part_of_experts(names: Iterable[str], every: Mapping[str, Any]) -> None:
    """Refuse some experts of a parameter without the others: PEFT adapts all of them."""
    chosen = set(names)
    parameters = {parameter_name(name) for name in chosen if is_expert(name)}
    for name in every:
        if parameter_name(name) in parameters and name not in chosen:
            raise ValueError(
                f"target_modules selects other experts of {parameter_name(name)} and not {name}, and PEFT adapts all "
                "experts of a parameter: name the parameter without a number"
            )
