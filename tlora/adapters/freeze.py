"""Freeze ``A`` for good, whatever PEFT and a trainer do to the model afterwards."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from tlora.adapters.lora_layers import adapter_layers
from tlora.utils.validation import check_arguments

_PARTS = ("lora_A", "lora_embedding_A")


def freeze_a(model: PeftModel) -> None:
    """Train ``B`` alone: freeze ``A`` of the active adapter.

    PEFT makes ``A`` trainable whenever it loads an adapter (``is_trainable=True``), and again after ``set_adapter()``
    and ``disable_adapter()``. With this, it stays frozen through the last two; call it once after loading.

    Parameters
    ----------
    model : peft.PeftModel
        A model with a LoRA adapter, from `attach` or PEFT. `attach` and `tlora.load_adapter` call this themselves.

    Raises
    ------
    ValueError
        If the active adapter has no ``A``.

    Examples
    --------
    >>> from peft import PeftModel
    >>> base, _ = tlora.load_model("base")
    >>> adapted = PeftModel.from_pretrained(base, "adapter", is_trainable=True)
    >>> tlora.freeze_a(adapted)
    >>> any(p.requires_grad for name, p in adapted.named_parameters() if "lora_A" in name)
    False
    """
    check_arguments(freeze_a, locals())
    has_a = False
    for layer in adapter_layers(model).values():
        for adapter in model.active_adapters:
            parts = tuple(part for part in _PARTS if adapter in getattr(layer, part))
            if parts:
                layer.frozen_peft_weight_names = layer.frozen_peft_weight_names | {adapter: parts}
                for part in parts:
                    getattr(layer, part)[adapter].requires_grad_(False)
                has_a = True
    if not has_a:
        raise ValueError("no layer of the active adapter has an A to freeze: attach or load a LoRA adapter first")


class FreezeA(TrainerCallback):
    """Keep ``A`` frozen in any Trainer: that of transformers, TRL's, and those derived from them.

    Calls `freeze_a` when the Trainer is created and again when training begins, after a checkpoint has been loaded to
    resume from.

    Examples
    --------
    >>> from transformers import Trainer, TrainingArguments
    >>> arguments = TrainingArguments("runs", report_to="none", disable_tqdm=True)
    >>> trainer = Trainer(adapted, arguments, train_dataset=task.train, callbacks=[tlora.FreezeA()])
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze before there is an optimizer, which then has no states for ``A``."""
        freeze_a(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freeze what loading a checkpoint has made trainable."""
        freeze_a(kwargs["model"])
