"""Check that an adapted model can be trained and, once saved, read again as it was."""

from __future__ import annotations

import math

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from tlora.adapters.lora_layers import adapter_tensors, lora_updates, require_one_adapter, warn_resized_vocabulary
from tlora.adapters.peft_config import module_ranks, module_scalings
from tlora.models.weights import refuse_packed


def check_trainable(model: PeftModel) -> None:
    """Refuse a model that cannot be trained, or whose saved adapter would compute something else.

    It warns if the vocabulary was resized: the adapter does not hold the new rows.
    """
    require_one_adapter(model, "train")
    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules()):
        raise ValueError("the adapter is switched off: call model.base_model.enable_adapter_layers() before train()")
    refuse_packed(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "no parameter of the model requires a gradient: attach an adapter, or load one with tlora.load_adapter() "
            "(in PEFT: is_trainable=True)"
        )
    saved = {tensor.data_ptr() for tensor in adapter_tensors(model).values()}
    lost = [name for name, p in trainable.items() if p.data_ptr() not in saved]
    if lost:
        raise ValueError(
            f"{lost[0]} would be trained but is not saved with the adapter: freeze it with requires_grad_(False), or "
            "name its module in the adapter's modules_to_save"
        )
    _check_config(model)
    warn_resized_vocabulary(model)


def _check_config(model: PeftModel) -> None:
    """Refuse layers whose rank or scaling differs from the config, which decides what is loaded again."""
    updates, config = lora_updates(model), model.peft_config[model.active_adapter].to_dict()
    ranks, scalings = module_ranks(config, updates), module_scalings(config, updates)
    for name, update in updates.items():
        if ranks[name] != update.rank or not math.isclose(scalings[name], update.scaling, rel_tol=1e-3):
            raise ValueError(
                f"{name} has rank {update.rank} and scaling {update.scaling:g}, its config says {ranks[name]:g} and "
                f"{scalings[name]:g}: undo what changed it (scale_layer, add_weighted_adapter of unlike ranks), or "
                "export it, and train what is loaded from there"
            )
