"""Freeze A for good, whatever PEFT and a trainer do to the model afterwards."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tlora.adapters.lora_layers import adapter_layers

_PARTS = ("lora_A", "lora_embedding_A")


def freeze_a(model: PeftModel) -> None:
    """Train ``B`` alone: freeze ``A`` of the active adapter.

    PEFT makes ``A`` trainable whenever it loads an adapter (``is_trainable=True``), and again after ``set_adapter()``
    and ``disable_adapter()``. After this it stays frozen through the last two; call it once after loading.

    Parameters
    ----------
    model : peft.PeftModel
        With a LoRA adapter, of `attach` or of PEFT itself. `attach` and `tlora.load` do this by themselves.

    Raises
    ------
    TypeError
        If it is not a ``PeftModel``.
    ValueError
        If the active adapter has no ``A``.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"freeze_a takes a PeftModel, got a {type(model).__name__}: attach or load an adapter first")
    found = False
    for layer in adapter_layers(model).values():
        for adapter in model.active_adapters:
            parts = tuple(part for part in _PARTS if adapter in getattr(layer, part))
            if parts:
                layer.frozen_peft_weight_names = layer.frozen_peft_weight_names | {adapter: parts}
                layer._freeze_non_trainable_peft_weights(adapter)
                found = True
    if not found:
        raise ValueError(f"no layer of the active adapter {', '.join(model.active_adapters)} has an A: it is not LoRA")


class FreezeA(TrainerCallback):
    """Keeps ``A`` as it is in any Trainer: that of transformers, TRL's, and those derived from them.

    `freeze_a` when the Trainer is made and when training begins, which is after a checkpoint was loaded to resume from.

    Examples
    --------
    ``SFTTrainer(model, callbacks=[tlora.FreezeA()], ...)``
    """

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze before there is an optimizer, which then has no states for ``A``."""
        freeze_a(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what loading a checkpoint has made trainable."""
        freeze_a(kwargs["model"])
