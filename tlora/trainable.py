"""Whether an adapted model can be trained and, once it is saved, read again as it was."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor
from transformers.utils import cached_file

from tlora.adapter import adapter_layers, refuse_experts
from tlora.engines import Adapter, by_layer
from tlora.models.weights import refuse_packed, refuse_replicated
from tlora.monitoring import lora_modules
from tlora.utils.files import read_json


def check_trainable(model: Any) -> None:
    """Refuse a model that cannot be trained, or would be saved as another than it is.

    Raises
    ------
    TypeError
        If it is no PeftModel.
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
    if len(model.active_adapters) != 1:
        raise ValueError(
            f"the model has the active adapters {', '.join(model.active_adapters) or 'none'}: choose "
            "the one to train with model.set_adapter(name)"
        )
    merged = [name for name, m in model.named_modules() if isinstance(m, BaseTunerLayer) and m.merged]
    if merged:
        raise ValueError(f"the adapter is merged into {merged[0]}: call model.unmerge_adapter() before training it")
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
    """Refuse layers of other ranks or scales than the config gives them, with which they would be read again."""
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


def say_resized(model: PeftModel) -> None:
    """Warn where the model has other tokens than the base by whose name its adapter is loaded again."""
    config = model.peft_config[model.active_adapter]
    here = getattr(model.config.get_text_config(), "vocab_size", None)
    there = _vocabulary(model.config._name_or_path)
    kept = getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None)
    if here and there and here != there and not kept:
        warnings.warn(
            f"the model has {here:,} tokens and {model.config._name_or_path} has {there:,}: the adapter holds none of "
            "the others, which are lost with this model; save the resized base and attach to that, name its "
            "embeddings in modules_to_save, or export it merged into the weights",
            stacklevel=4,
        )


def _vocabulary(base: str) -> int | None:
    """Tokens of a base, by its config in a folder or in the cache of the hub."""
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        file = cached_file(base, "config.json", **options) if base else None
        config = read_json(Path(file)) if file else {}
        return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return None


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Tensors of the active adapter and of what it saves whole, by the names under which PEFT saves them."""
    # Left to itself PEFT asks a hub whether the vocabulary was resized.
    return get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
