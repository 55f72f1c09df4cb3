"""Whether an adapted model can be trained and, once it is saved, read again as it was."""

from __future__ import annotations

import math
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from tlora.adapters.files import Adapter, by_layer, refuse_replicated
from tlora.adapters.lora_layers import (
    adapter_layers,
    adapter_tensors,
    lora_modules,
    refuse_experts,
    refuse_unready,
    say_resized,
)
from tlora.models.weights import refuse_packed


def check_trainable(model: Any) -> None:
    """Refuse a model that cannot be trained, or that loading would not restore.

    Raises
    ------
    TypeError
        If it is not a PeftModel.
    ValueError
        If its adapter was taken off, or several are active; if it is merged, there is nothing to train, something would
        be trained that is not saved, or layers have other ranks or scales than the adapter's config; if there is LoRA
        of experts.

    Warns
    -----
    UserWarning
        If its vocabulary was resized: the adapter does not hold the new rows.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"train() takes an adapted model, got {type(model).__name__}: attach an adapter first, "
            "tlora.attach(model, subspaces, allocation)"
        )
    if isinstance(model.base_model, BaseTuner) and not any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise ValueError("the adapter was taken off this model: attach one to its base, or load it again")
    refuse_unready(model, "train")
    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules()):
        raise ValueError(
            "the adapter is switched off: call model.base_model.enable_adapter_layers() before training it"
        )
    refuse_packed(model)
    refuse_experts(adapter_layers(model))
    refuse_replicated(model.peft_config[model.active_adapter].to_dict())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "nothing in the model requires a gradient: attach an adapter, or load one to train on with "
            "tlora.load() (in PEFT: is_trainable=True)"
        )
    saved = {tensor.data_ptr() for tensor in adapter_tensors(model).values()}
    lost = [name for name, p in trainable.items() if p.data_ptr() not in saved]
    if lost:
        raise ValueError(
            f"{lost[0]} would be trained but is not saved with the adapter: freeze it with "
            "requires_grad_(False), or name its module in the adapter's modules_to_save"
        )
    _check_config(model)
    say_resized(model)


def _check_config(model: PeftModel) -> None:
    """Refuse layers whose ranks or scales differ from the config, which loading would use."""
    modules = lora_modules(model)
    ranks = {name: module.rank for name, module in modules.items()}
    said = Adapter(model.peft_config[model.active_adapter].to_dict(), ranks)
    scales = by_layer(said)
    for name, module in modules.items():
        rank = said.pattern(name, "rank_pattern", said.config["r"])
        there = len(module.a) or module.rank  # a sharded A has no rows here
        if not rank == module.rank == there or not math.isclose(scales[name], module.scaling, rel_tol=1e-3):
            raise ValueError(
                f"{name} has rank {there} and scaling {module.scaling:g}, its config says {rank:g} and "
                f"{scales[name]:g}, with which it would be saved: undo what changed it (scale_layer, "
                "add_weighted_adapter of unlike ranks), or export it, and train what is loaded from there"
            )
