"""The config with which PEFT makes an allocation's layers, for `attach` and for any other trainer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from tlora.allocation.allocation import Allocation
from tlora.models.targets import head_modules, refuse_adapted
from tlora.models.weights import base_modules, check_same_model

_OF_PEFT = ("classifier", "score")
"""Names of heads that PEFT adds to ``modules_to_save`` itself."""

_DECIDED = {
    "r": "the rank",
    "rank_pattern": "the rank",
    "lora_alpha": "the scaling",
    "alpha_pattern": "the scaling",
    "use_rslora": "the scaling",
    "use_dora": "the scaling",
    "use_qalora": "the rank",
    "fan_in_fan_out": "the layout",
    **dict.fromkeys(
        (
            "target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern",
            "layer_replication",
        ),
        "the choice",
    ),
}  # fmt: skip
"""Arguments of a `peft.LoraConfig` that an allocation, and the model it is for, have decided already."""


def lora_config(model: Any, allocation: Allocation, **overrides: Any) -> LoraConfig:
    """The PEFT config of an allocation, for any trainer that takes one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model that the allocation is for.
    allocation : Allocation
        Rank and scaling of each module.
    **overrides
        Other arguments of `peft.LoraConfig`: ``lora_dropout=0.05``, ``bias="lora_only"``, ``modules_to_save=[...]``
        (beside the head of a classifier), ``init_lora_weights="gaussian"``, ...

    Returns
    -------
    peft.LoraConfig
        For `peft.get_peft_model`, or ``peft_config=`` of a trainer.

    Raises
    ------
    TypeError
        If PEFT has no such argument.
    ValueError
        If an argument contradicts the allocation (the rank, alpha, their patterns, rsLoRA, DoRA, the choice of
        modules) or makes ``B`` or the base start as something else; if the allocation is of another model; if the model
        carries an adapter.

    Notes
    -----
    ``A`` is PEFT's here: random, and trained. To start from the directions of the task and train ``B`` alone, use
    `attach`, or let the trainer continue from what `save_initial` writes.

    PEFT divides a layer's alpha by that layer's own rank, so ``alpha_pattern`` holds ``scaling * rank``. Pattern keys
    are regular expressions that PEFT matches on suffixes: ours are escaped full names, anchored.

    Examples
    --------
    ``SFTTrainer(model, peft_config=tlora.lora_config(model, allocation, lora_dropout=0.05), ...)``
    """
    refuse_adapted(model)
    check_config(model, allocation, overrides)
    return checked_config(model, allocation, overrides)


def checked_config(model: Any, allocation: Allocation, overrides: Mapping[str, Any]) -> LoraConfig:
    """What `lora_config` gives for overrides that `check_config` has let pass."""
    shared = shared_config(model, allocation.ranks)
    saved = [*(shared["modules_to_save"] or ()), *(overrides.get("modules_to_save") or ())]
    ours = {
        "r": allocation.rank,
        "lora_alpha": max(1, round(allocation.alpha)),  # never read: each module has its own in alpha_pattern
        **patterns(allocation.ranks, allocation.scalings),
        "modules_to_save": list(dict.fromkeys(saved)) or None,
    }
    return LoraConfig(**{**shared, **overrides, **ours})


def patterns(ranks: Mapping[str, int], scalings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``rank_pattern`` and ``alpha_pattern`` of a config, by anchored names; PEFT divides an alpha by its own rank."""
    anchored = {name: f"^{re.escape(name)}$" for name in ranks}
    return {
        "rank_pattern": {anchored[name]: rank for name, rank in ranks.items()},
        "alpha_pattern": {anchored[name]: scalings[name] * rank for name, rank in ranks.items()},
    }


def given(config: LoraConfig) -> dict[str, Any]:
    """What differs from PEFT's defaults in a config, as overrides of `lora_config`.

    Raises
    ------
    TypeError
        If it is not a ``LoraConfig``.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"config is a {type(config).__name__}: pass a peft.LoraConfig")
    usual = vars(LoraConfig())
    return {name: value for name, value in vars(config).items() if value != usual[name]}


def check_config(model: Any, allocation: Allocation, overrides: Mapping[str, Any]) -> None:
    """Refuse overrides that contradict the allocation, and a model on which PEFT would adapt or train other modules.

    Raises
    ------
    ValueError
        If there is one.
    """
    for name, value in overrides.items():
        if what := _DECIDED.get(name):
            raise ValueError(
                f"{name}={value!r} contradicts the allocation, which decides {what} of every module: leave {name} out"
            )
    start = overrides.get("init_lora_weights", True)
    if start is not True and start != "gaussian":
        raise ValueError(
            f"init_lora_weights={start!r} changes the base's weights, the ranks, or the zero start of B: leave it out, "
            "or take 'gaussian'; tlora.attach sets A from the task's directions"
        )
    allocated = {name: shape for name, shape in allocation.shapes.items() if name in allocation.ranks}
    check_same_model(model, {}, allocated, what="this allocation is")
    _check_names(model, allocation)
    _check_head(model)


def _check_names(model: nn.Module, allocation: Allocation) -> None:
    """Refuse modules outside the allocation whose name ends in that of one inside: PEFT would adapt both."""
    for name in base_modules(model):
        parts = name.split(".")
        inside = next((end for k in range(1, len(parts)) if (end := ".".join(parts[k:])) in allocation.ranks), None)
        if inside is not None and name not in allocation.ranks:
            raise ValueError(
                f"the allocation has {inside} but not {name}, whose name ends the same way, and PEFT would adapt both: "
                "allocate to both, or to neither"
            )


def _check_head(model: Any) -> None:
    """Refuse a head by whose name PEFT finds other modules as well: it takes all whose names end like that."""
    heads = head_modules(model)
    named = (*heads, *_OF_PEFT) if heads else ()
    for name, _ in model.named_modules():
        if name.endswith(named) and name not in heads:
            raise ValueError(
                f"the name of {name} ends like that of the head, {', '.join(heads)}, and PEFT would train both whole: "
                "give the head another name in the model's class"
            )


def shared_config(model: Any, names: Iterable[str]) -> dict[str, Any]:
    """What the PEFT config of an adapter of any kind says of the model: modules, head, layout of the weights.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model.
    names : iterable of str
        Full names of the modules to adapt.

    Returns
    -------
    dict
        Arguments of a `peft.PeftConfig`.
    """
    names = list(names)
    head = [name for name in head_modules(model) if name not in _OF_PEFT]
    return {
        "task_type": _task_type(model),
        "target_modules": names,
        "fan_in_fan_out": all(isinstance(model.get_submodule(name), Conv1D) for name in names),
        "modules_to_save": head or None,
        "bias": "none",
    }


def _task_type(model: Any) -> TaskType | None:
    if head_modules(model):
        return TaskType.SEQ_CLS
    if model.config.is_encoder_decoder:
        return TaskType.SEQ_2_SEQ_LM
    return TaskType.CAUSAL_LM if model.can_generate() else None
