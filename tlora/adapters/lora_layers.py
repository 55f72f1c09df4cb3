"""The LoRA layers of a PEFT model: find them, read them, check them, take them off."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.utils import cached_file

from tlora.adapters.peft_config import refuse_experts
from tlora.adapters.update import LoraUpdate, expert_factors
from tlora.models.sharding import full_tensor, is_sharded
from tlora.models.weights import get_base_model
from tlora.utils.files import read_json

ADAPTER = "default"
"""Name of an adapter that is not given another."""


def wrappers(base: nn.Module) -> dict[str, Any]:
    """Return the layers and modules that PEFT has wrapped, by name; of nested wrappers the outermost."""
    outermost: dict[str, Any] = {}
    for name, module in base.named_modules():
        inside = outermost and name.startswith(f"{next(reversed(outermost))}.")
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            outermost[name] = module
    return outermost


def unwrap(base: nn.Module, keep: Collection[str] = ()) -> None:
    """Replace the `wrappers` of a base by the layers and modules inside, except at the names to keep."""
    for name, module in wrappers(base).items():
        if name in keep:
            continue
        inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, inner)


def removal(model: PeftModel, name: str) -> Callable[[], None]:
    """Return a function that removes an adapter which is yet to be added, even if adding it fails halfway.

    It also restores which adapter is active and which parameters are trainable.
    """
    base, active = model.get_base_model(), model.active_adapter
    before, restore = wrappers(base), remember_trainable(model)

    def remove() -> None:
        model.set_adapter(active)  # first: PEFT warns when it deletes the active one
        if name in model.peft_config:
            model.delete_adapter(name)
        unwrap(base, keep=before)
        restore()

    return remove


def is_a_frozen(model: PeftModel) -> bool:
    """Whether ``B`` of the active adapter is trainable and ``A`` is not; of a model for inference neither is."""
    updates = lora_updates(model).values()
    return any(update.b.requires_grad for update in updates) and not any(update.a.requires_grad for update in updates)


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of modules that are saved whole with an adapter, such as a classifier's head."""
    return [p for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." in name]


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def remember_trainable(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores ``requires_grad`` of all parameters as it is now."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, required in flags:
            parameter.requires_grad_(required)

    return restore


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the LoRA layers of a model by the full name of the module that each wraps, in model order.

    Those of experts are by the name of the parameter.
    """
    layers = {name: module for name, module in get_base_model(model).named_modules() if isinstance(module, LoraLayer)}
    return {_adapted_name(name, layer): layer for name, layer in layers.items()}


def _adapted_name(name: str, layer: LoraLayer) -> str:
    # PEFT nests the layers of several parameters of a module.
    parameter = getattr(layer, "parameter_name", None)
    return name if parameter is None else f"{name.replace('.base_layer', '')}.{parameter}"


def has_experts(layer: Any) -> bool:
    """Whether a LoRA layer is of a parameter that holds several experts."""
    return hasattr(layer, "parameter_name") and layer.get_param().ndim == 3


def require_one_lora(model: Any, function: str, *, experts: bool = False) -> None:
    """Refuse a model that does not have exactly one active LoRA adapter that is not merged.

    One with LoRA of experts is refused too, unless the function reads it, ``experts``.
    """
    layers = adapter_layers(model) if isinstance(model, PeftModel) else {}
    if not layers:
        raise ValueError(
            f"{function}() takes a PeftModel with a LoRA adapter, as from tlora.attach or tlora.load_adapter: this "
            f"{type(model).__name__} has no LoRA layers"
        )
    if not experts:
        refuse_experts((name for name, layer in layers.items() if has_experts(layer)), function)
    require_one_adapter(model, function)


def require_one_adapter(model: PeftModel, function: str) -> None:
    """Refuse a model whose adapter is merged, or that does not have exactly one active adapter."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise ValueError(f"the adapter is merged into {name}: call model.unmerge_adapter() before {function}()")
    if len(names := model.active_adapters) != 1:
        raise ValueError(f"{len(names)} adapters are active {names}: select one with model.set_adapter(name)")


def shared_weight(model: PeftModel) -> tuple[str, str] | None:
    """Return a module of the active adapter that shares its weight, and the module it shares it with, if any."""
    modules = dict(model.get_base_model().named_modules(remove_duplicate=False))
    holders: dict[int, dict[int, str]] = defaultdict(dict)  # by parameter: names, by the outermost layer around it
    for name, module in modules.items():
        outermost = name.replace(".base_layer", "")
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)][id(modules.get(outermost))] = outermost
    for name, layer in adapter_layers(model).items():
        if set(model.active_adapters).isdisjoint(layer.r):
            continue
        outermost = name if name in modules else name.rpartition(".")[0]
        for parameter in layer.get_base_layer().parameters(recurse=False):
            shared = holders[id(parameter)].items()
            if others := [other for holder, other in shared if holder != id(modules[outermost])]:
                return name, others[0]
    return None


def obstacle_to_merging(model: PeftModel) -> str:
    """Say, in a clause, why the active adapter cannot be folded into the base weights; empty if it can."""
    if shared := shared_weight(model):
        return f"{shared[0]} shares its weight with {shared[1]}, and merging would change both"
    return "the base is sharded over processes" if is_sharded(model) else ""


def lora_updates(model: PeftModel, embeddings: bool = False) -> dict[str, LoraUpdate]:
    """Return the updates of linear modules by the active adapter, by full name in the base model, in model order.

    They hold the layers' own parameters; those of E experts, (E, r, d_in) and (E, d_out, r), are views of them.
    With ``embeddings`` also those of embeddings, transposed. Convolutions and AdaLoRA, which store their factors
    differently, are left out.
    """
    adapter, updates = model.active_adapter, {}
    layers: dict[str, Any] = dict(adapter_layers(model))
    for name, layer in layers.items():
        a = dict(layer.lora_A.items()).get(adapter)
        if isinstance(a, nn.Linear) and isinstance(b := layer.lora_B[adapter], nn.Linear):
            factors: tuple[Tensor, Tensor] = a.weight, b.weight
            if has_experts(layer):
                factors = expert_factors(*factors, layer.num_experts)
            updates[name] = LoraUpdate(name, *factors, layer.scaling[adapter])
        elif embeddings and adapter in layer.lora_embedding_A:
            factors = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
            updates[name] = LoraUpdate(name, *factors, layer.scaling[adapter])
    return updates


def lora_parameters(model: PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return ``A`` and ``B`` of the active adapter as the model trains them, by the names of `lora_updates`."""
    layers: dict[str, Any] = dict(adapter_layers(model))
    adapter = model.active_adapter
    return {
        name: (layers[name].lora_A[adapter].weight, layers[name].lora_B[adapter].weight) for name in lora_updates(model)
    }


def weight_norm(layer: Any) -> float:
    """Return the Frobenius norm of the base weight of a layer, computed in float32; of all its experts."""
    if has_experts(layer):
        return torch.linalg.vector_norm(layer.get_param().detach(), dtype=torch.float32).item()
    base = layer.get_base_layer()
    with align_module_device(base):
        weight = full_tensor(dequantize_module_weight(base).detach())
    return torch.linalg.vector_norm(weight, dtype=torch.float32).item()


def warn_resized_vocabulary(model: PeftModel) -> None:
    """Warn if the model has more or fewer tokens than the base from which its adapter will be loaded again."""
    config = model.peft_config[model.active_adapter]
    here = getattr(model.config.get_text_config(), "vocab_size", None)
    there = _vocabulary_size(model.config.name_or_path)
    is_saved = getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None)
    if here and there and here != there and not is_saved:
        warnings.warn(
            f"the model has {here:,} tokens and {model.config.name_or_path} has {there:,}: the adapter does not hold "
            "the embeddings of the new ones. Save the resized base and attach to that, name its embeddings in "
            "modules_to_save, or export merged weights",
            stacklevel=4,
        )


def _vocabulary_size(base: str) -> int | None:
    """Return the vocabulary size of a base by its config, in a folder or in the cache of the hub; None if unknown."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        file = cached_file(base, "config.json", local_files_only=True) if base else None
        config = read_json(Path(file)) if file else {}
        return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return None


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Return the tensors of the active adapter and of modules it saves whole, by the names PEFT saves them under."""
    # By default PEFT asks a hub whether the vocabulary was resized.
    return get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """Return the config as PEFT saves it, with sets sorted so that equal runs save equal bytes."""
    config = model.peft_config[model.active_adapter].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": model.config.name_or_path}
    if config["task_type"] is None:
        base = type(model.get_base_model())
        config["auto_mapping"] = {"base_model_class": base.__name__, "parent_library": base.__module__}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.loads(json.dumps(plain, default=str))
