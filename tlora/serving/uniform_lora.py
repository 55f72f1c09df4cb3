"""Uniform LoRA: ``A`` and ``B`` of each module with all scaling in ``B``, which every reader of LoRA understands."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.functional import pad

from tlora.adapters.files import PREFIX, refuse_more_than_lora
from tlora.adapters.lora_layers import (
    adapter_tensors,
    lora_modules,
    obstacle_to_merging,
    require_one_lora,
    warn_resized_vocabulary,
)
from tlora.models.targets import is_linear, shape

MERGED = "export merged weights, format='merged'"

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PlainLora:
    """An adapter as ``W + B A``, on the CPU in float32: ``A`` and ``s B`` of each module, and heads trained whole."""

    factors: dict[str, Factors]
    others: dict[str, Tensor]
    config: Any

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(len(a) for a, _ in self.factors.values())


def plain_lora(model: PeftModel) -> PlainLora:
    """Take a model's adapter apart, folding the scaling into ``B`` in float32, before any cast; refuse what is more."""
    require_one_lora(model, "export")
    modules, config = lora_modules(model), model.peft_config[model.active_adapter]
    obstacle, values = obstacle_to_merging(model), config.to_dict()
    way_out = f"serve it with PEFT, because {obstacle}" if obstacle else MERGED
    refuse_more_than_lora(values, way_out)
    if (bias := values.get("bias", "none")) != "none":
        raise ValueError(f"bias={bias!r} trained biases of the base, which A and B do not hold: {way_out}")
    warn_resized_vocabulary(model)
    tensors = adapter_tensors(model)
    others = {key: t.detach().cpu() for key, t in tensors.items()}
    factors = {}
    for name, module in modules.items():
        for part in "AB":
            others.pop(f"{PREFIX}{name}.lora_{part}.weight", None)
        a, b = (factor.detach().cpu().float() for factor in (module.a, module.b))
        factors[name] = (a, b * module.scaling)
    saved = [n for n, m in model.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)]
    strays = [key for key in others if not key.startswith(tuple(f"{PREFIX}{name}." for name in saved))]
    if strays:
        raise ValueError(f"{strays[0]} is neither A nor B of a linear layer nor part of a saved head: {way_out}")
    for key, other in itertools.combinations(others, 2):
        if tensors[key].data_ptr() == tensors[other].data_ptr():
            raise ValueError(f"{key} and {other} are one weight, and this format holds each on its own: {way_out}")
    return PlainLora(factors, others, config)


def pad_to_rank(factors: Mapping[str, Factors], rank: int) -> dict[str, Factors]:
    """Return the same updates with one rank, adding rows of zeros to A and columns of zeros to B."""
    return {
        name: (pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - b.shape[1]))) for name, (a, b) in factors.items()
    }


def fill_layers(factors: Mapping[str, Factors], model: nn.Module) -> dict[str, Factors]:
    """Return the same updates, with zeros for modules that a layer lacks and another layer has.

    Engines that stack the layers drop a kind of module everywhere if one layer lacks it. The result is in model order.
    """
    rank = len(next(iter(factors.values()))[0])
    kinds = {_kind(name) for name in factors}
    filled = dict(factors)
    for name, module in model.named_modules():
        if name not in factors and _kind(name) in kinds and is_linear(module):
            d_out, d_in = shape(module)
            filled[name] = (torch.zeros(rank, d_in), torch.zeros(d_out, rank))
    order = {name: n for n, (name, _) in enumerate(model.named_modules())}
    return dict(sorted(filled.items(), key=lambda item: order[item[0]]))


def _kind(name: str) -> str:
    """Return the name without the number of the layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def target_suffixes(names: Iterable[str], model: nn.Module) -> list[str]:
    """Return target modules for a config: the last parts of the names, unless these would match other modules."""
    full = set(names)
    short = {name.rpartition(".")[2] for name in full}
    matched = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if matched == full else full)
