"""What of an adapter every reader of LoRA understands: A and B of each module, all scaling in B, and nothing else."""

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
    adapter_layers,
    adapter_tensors,
    kind_of_adapter,
    lora_modules,
    refuse_experts,
    refuse_unready,
    say_resized,
    why_not_merged,
)
from tlora.models.targets import is_linear, shape

MERGED = "export it merged into the weights, format='merged'"

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PlainLora:
    """An adapter as ``W + B A``, on the CPU in float32.

    Attributes
    ----------
    factors : dict of (tensor, tensor)
        ``A`` (r, d_in) and ``s B`` (d_out, r) of each module, by full module name in model order.
    others : dict of tensor
        Heads that were trained whole, by the names under which PEFT saves them.
    config : peft.LoraConfig
        The adapter's.
    """

    factors: dict[str, Factors]
    others: dict[str, Tensor]
    config: Any

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(len(a) for a, _ in self.factors.values())


def check_exportable(model: PeftModel) -> None:
    """Refuse a model without one LoRA adapter that can be written as it is.

    Raises
    ------
    TypeError
        If it is not a PEFT model.
    ValueError
        If it has no LoRA layers or those of experts, several adapters are active, or one is merged.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"export takes the PeftModel of attach or load, not a {type(model).__name__}")
    layers = adapter_layers(model)
    if not layers:
        other = kind_of_adapter(model)
        there = f"an adapter of the kind {other}, and export is for LoRA" if other else "no LoRA layers to export"
        raise ValueError(f"the model has {there}: attach an adapter first")
    refuse_experts(layers)
    refuse_unready(model, "export")


def plain_lora(model: PeftModel) -> PlainLora:
    """Take a model's adapter apart; the scaling is folded into B in float32, before any cast.

    Parameters
    ----------
    model : peft.PeftModel
        With one LoRA adapter, not merged. It is only read.

    Returns
    -------
    PlainLora

    Raises
    ------
    TypeError
        If it is not a PEFT model.
    ValueError
        If it has no LoRA layers, is merged, or computes something that A and B of linear layers do not hold.
    """
    check_exportable(model)
    modules, config = lora_modules(model), model.peft_config[model.active_adapter]
    way_out = _way_out(model)
    values = config.to_dict()
    refuse_more_than_lora(values, way_out)
    if (bias := values.get("bias", "none")) != "none":
        raise ValueError(f"bias={bias!r} trained biases of the base, which A and B do not hold: {way_out}")
    say_resized(model)
    tensors = adapter_tensors(model)
    others = {key: t.detach().cpu() for key, t in tensors.items()}
    factors = {}
    for name, module in modules.items():
        for part in "AB":
            others.pop(f"{PREFIX}{name}.lora_{part}.weight", None)
        a, b = (factor.detach().cpu().float() for factor in (module.a, module.b))
        factors[name] = (a, b * module.scaling)
    saved = [n for n, m in model.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)]
    strange = [key for key in others if not key.startswith(tuple(f"{PREFIX}{name}." for name in saved))]
    if strange:
        raise ValueError(f"{strange[0]} is neither A nor B of a linear layer nor part of a saved head: {way_out}")
    for key, other in itertools.combinations(others, 2):
        if tensors[key].data_ptr() == tensors[other].data_ptr():
            raise ValueError(f"{key} and {other} are one weight, and this format holds each on its own: {way_out}")
    return PlainLora(factors, others, config)


def _way_out(model: PeftModel) -> str:
    """Of an adapter that only its own format holds: the merged one, where it can be merged."""
    why = why_not_merged(model)
    return f"serve it with PEFT, for {why}" if why else MERGED


def padded(factors: Mapping[str, Factors], rank: int) -> dict[str, Factors]:
    """The same updates with one rank: rows of A and columns of B that are zero are added."""
    return {
        name: (pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - b.shape[1]))) for name, (a, b) in factors.items()
    }


def in_every_layer(factors: Mapping[str, Factors], model: nn.Module) -> dict[str, Factors]:
    """The same updates, with zeros where a layer lacks a module that another layer has.

    Engines that stack the layers drop a kind of module everywhere where one layer lacks it.

    Parameters
    ----------
    factors : mapping of (tensor, tensor)
        By full module name, of one rank.
    model : torch.nn.Module
        The base, with or without the adapter.

    Returns
    -------
    dict of (tensor, tensor)
        In model order.
    """
    rank = len(next(iter(factors.values()))[0])
    kinds = {_kind(name) for name in factors}
    found = dict(factors)
    for name, module in model.named_modules():
        if name not in factors and _kind(name) in kinds and is_linear(module):
            d_out, d_in = shape(module)
            found[name] = (torch.zeros(rank, d_in), torch.zeros(d_out, rank))
    order = {name: n for n, (name, _) in enumerate(model.named_modules())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _kind(name: str) -> str:
    """The name without the number of the layer."""
    return re.sub(r"\.\d+\.", ".*.", name)


def target_suffixes(names: Iterable[str], model: nn.Module) -> list[str]:
    """Shortest list of target modules that PEFT reads as these: last parts of names where they mean no others."""
    wanted = set(names)
    short = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if meant == wanted else wanted)
