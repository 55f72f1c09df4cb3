"""Uniform LoRA: ``A`` and ``B`` of each module with all scaling in ``B``, which every reader of LoRA understands."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn.functional import pad

from tlora.adapters.adapter import LoraAdapter
from tlora.adapters.files import PREFIX, factor_tensors
from tlora.adapters.lora_layers import (
    adapter_tensors,
    lora_updates,
    obstacle_to_merging,
    require_one_lora,
    warn_resized_vocabulary,
)
from tlora.adapters.peft_config import refuse_more_than_lora
from tlora.adapters.update import LoraUpdate
from tlora.models.targets import is_linear, shape

MERGED = "export merged weights, format='merged'"


def uniform_lora(model: PeftModel) -> LoraAdapter:
    """Return a model's adapter on the CPU, in model order, with all scaling in ``B``; refuse what is more than that.

    The scaling is folded in float32, before any cast.
    """
    require_one_lora(model, "export")
    updates, config = lora_updates(model), model.peft_config[model.active_adapter].to_dict()
    obstacle = obstacle_to_merging(model)
    way_out = f"serve it with PEFT, because {obstacle}" if obstacle else MERGED
    refuse_more_than_lora(config, way_out)
    if (bias := config.get("bias", "none")) != "none":
        raise ValueError(f"bias={bias!r} trained biases of the base, which A and B do not hold: {way_out}")
    warn_resized_vocabulary(model)
    factors = factor_tensors(updates.values())
    others = {key: tensor for key, tensor in adapter_tensors(model).items() if key not in factors}
    saved = [n for n, m in model.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)]
    strays = [key for key in others if not key.startswith(tuple(f"{PREFIX}{name}." for name in saved))]
    if strays:
        raise ValueError(f"{strays[0]} is neither A nor B of a linear layer nor part of a saved head: {way_out}")
    for (key, tensor), (twin, its_tensor) in itertools.combinations(others.items(), 2):
        if tensor.data_ptr() == its_tensor.data_ptr():
            raise ValueError(f"{key} and {twin} are one weight, and this format holds each on its own: {way_out}")
    return LoraAdapter(
        updates={name: update.to(torch.float32, "cpu").fold() for name, update in updates.items()},
        config=config,
        others={key: tensor.detach().cpu() for key, tensor in others.items()},
    )


def pad_to_rank(update: LoraUpdate, rank: int) -> LoraUpdate:
    """Return the same update with a larger rank, by rows of zeros in ``A`` and columns of zeros in ``B``."""
    more = rank - update.rank
    return replace(update, a=pad(update.a, (0, 0, 0, more)), b=pad(update.b, (0, more)))


def fill_layers(updates: Mapping[str, LoraUpdate], model: nn.Module) -> dict[str, LoraUpdate]:
    """Return the updates of one rank, in model order, and zeros for modules that a layer lacks and another layer has.

    Engines that stack the layers drop a kind of module everywhere if one layer lacks it.
    """
    rank = next(iter(updates.values())).rank
    kinds = {_kind(name) for name in updates}
    filled = {}
    for name, module in model.named_modules():
        if name in updates:
            filled[name] = updates[name]
        elif _kind(name) in kinds and is_linear(module):
            d_out, d_in = shape(module)
            filled[name] = LoraUpdate(name, torch.zeros(rank, d_in), torch.zeros(d_out, rank))
    return filled


def _kind(name: str) -> str:
    """Return the name without the number of the layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def target_suffixes(names: Iterable[str], model: nn.Module) -> list[str]:
    """Return target modules for a config: the last parts of the names, unless these would match other modules."""
    full = set(names)
    short = {name.rpartition(".")[2] for name in full}
    matched = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if matched == full else full)
