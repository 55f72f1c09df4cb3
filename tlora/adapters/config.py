"""The PEFT config of an allocation, for `attach` and for any other trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from peft import LoraConfig, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from tlora.adapters.peft_config import patterns
from tlora.allocation.allocation import Allocation
from tlora.models.targets import Model, head_modules, is_adapted, refuse_adapted
from tlora.models.weights import base_modules, check_same_model, get_base_model
from tlora.utils.validation import check_arguments

_PEFT_HEADS = ("classifier", "score")
"""Names of heads that PEFT adds to ``modules_to_save`` itself."""

_ALLOCATED = (
    "r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "use_qalora", "fan_in_fan_out",
    "target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern",
    "layer_replication",
)  # fmt: skip
"""Arguments of `peft.LoraConfig` that the allocation, or the model it is for, decides."""

_NOT_FOR_EXPERTS = ("lora_dropout", "lora_bias", "velora_config", "kasa_config")
"""Arguments of `peft.LoraConfig` that adapters of experts do not take."""


def lora_config(model: Model, allocation: Allocation, **overrides: Any) -> LoraConfig:
    """Return the PEFT config of an allocation, for any trainer that takes one.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model that the allocation was computed for.
    allocation : Allocation
        Rank and scaling of each module.
    **overrides
        Other arguments of `peft.LoraConfig`, such as ``lora_dropout=0.05``, ``bias="lora_only"``,
        ``modules_to_save=[...]`` (in addition to a classifier's head) or ``init_lora_weights="gaussian"``.

    Returns
    -------
    peft.LoraConfig
        For `peft.get_peft_model`, or the ``peft_config`` argument of a trainer.

    Raises
    ------
    ValueError
        If an override contradicts the allocation, or starts ``B`` or the base weights differently; if the allocation
        is of another model; if the model already has an adapter.

    Notes
    -----
    ``A`` is then PEFT's: random, and trained. To start from the directions of the task and train ``B`` alone, use
    `attach`, or let the trainer continue from what `save_initial` writes. Experts are in ``target_parameters``, with
    one rank for all experts of a parameter; PEFT has no dropout, bias or DoRA for them, and warns without reason that
    their patterns match nothing.

    PEFT divides a layer's alpha by that layer's own rank, so ``alpha_pattern`` holds ``scaling * rank``. PEFT matches
    pattern keys as regular expressions on suffixes of module names; the keys here are escaped, anchored full names.

    Examples
    --------
    >>> config = tlora.lora_config(model, allocation, lora_dropout=0.05)
    >>> config.lora_dropout, len(config.rank_pattern) == len(allocation.ranks)
    (0.05, True)

    TRL takes it as ``SFTTrainer(model, peft_config=config, ...)``.
    """
    check_arguments(lora_config, locals())
    refuse_adapted(model)
    if allocation.options.rank_by_expert:
        raise ValueError(
            "rank_by_expert=True: PEFT's config holds one rank for all experts of a parameter; tlora.attach sets the "
            "rows of A beyond an expert's own rank to zero, and tlora.save_initial hands that to another trainer"
        )
    return build_config(model, allocation, overrides)


def build_config(model: Any, allocation: Allocation, overrides: Mapping[str, Any]) -> LoraConfig:
    """Build what `lora_config` returns, for a model that may still have an adapter."""
    for name in overrides:
        if name in _ALLOCATED:
            raise ValueError(f"{name}={overrides[name]!r}: the allocation decides this for every module, leave it out")
    start = overrides.get("init_lora_weights", True)
    if start is not True and start != "gaussian":
        raise ValueError(
            f"init_lora_weights={start!r} changes the base weights, the ranks, or the zero start of B: leave it out or "
            "use 'gaussian'; tlora.attach sets A from the task's directions"
        )
    shapes = {name: shape for name, shape in allocation.shapes.items() if name in allocation.ranks}
    check_same_model(model, {}, shapes, what="this allocation is")
    _refuse_ambiguous_names(model, allocation)
    _refuse_options_of_experts(overrides, allocation)
    shared = shared_config(model, allocation.ranks)
    saved = [*(shared["modules_to_save"] or ()), *(overrides.get("modules_to_save") or ())]
    _refuse_whole_modules(overrides.get("modules_to_save") or (), allocation)
    ours = {
        "r": allocation.rank,
        "lora_alpha": max(1, round(allocation.alpha)),  # unused: alpha_pattern has an alpha for each module
        **patterns(allocation.stored_ranks, allocation.scalings),
        "modules_to_save": list(dict.fromkeys(saved)) or None,
    }
    return LoraConfig(**{**shared, **overrides, **ours})


def non_default_options(config: LoraConfig) -> dict[str, Any]:
    """Return the arguments of a config that differ from PEFT's defaults, as overrides of `lora_config`."""
    defaults = LoraConfig()
    options = {one.name: getattr(config, one.name) for one in fields(config) if one.init}
    return {name: value for name, value in options.items() if value != getattr(defaults, name)}


def _refuse_whole_modules(saved: Iterable[str], allocation: Allocation) -> None:
    """Refuse ``modules_to_save`` that hold a module of the allocation, which PEFT would train without an adapter."""
    for name in allocation.ranks:
        parts = name.split(".")
        holders = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        whole = next((one for holder in holders for one in saved if holder.endswith(one)), None)
        if whole is not None:
            raise ValueError(
                f"modules_to_save={whole!r} would train {name} whole, and the allocation gives it an adapter: leave it "
                "out of modules_to_save, or allocate with exclude_modules"
            )


def _refuse_options_of_experts(overrides: Mapping[str, Any], allocation: Allocation) -> None:
    """Refuse, before PEFT does, options that its adapters of experts do not have."""
    experts = [name for name in allocation.ranks if allocation.targets[name].experts > 1]
    for option in _NOT_FOR_EXPERTS:
        if experts and overrides.get(option):
            raise ValueError(
                f"{option}={overrides[option]!r}: PEFT has no such adapters of experts, as in {experts[0]}; leave it "
                'out, or allocate without experts, target_modules="attention"'
            )


def _refuse_ambiguous_names(model: Any, allocation: Allocation) -> None:
    """Refuse modules outside the allocation whose name ends in that of one inside: PEFT would adapt both."""
    for name in base_modules(model):
        parts = name.split(".")
        inside = next((end for k in range(1, len(parts)) if (end := ".".join(parts[k:])) in allocation.ranks), None)
        if inside is not None and name not in allocation.ranks:
            raise ValueError(
                f"the allocation has {inside} but not {name}, whose name ends the same way, so PEFT would adapt both: "
                "allocate to both, or to neither"
            )


def shared_config(model: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of a PEFT config that depend on the model: task, modules, head, layout of the weights.

    ``names`` are those of modules, and of parameters of experts.
    """
    layers = dict(get_base_model(model).named_modules())
    modules = [name for name in names if name in layers]
    return {
        "task_type": _task_type(model),
        "target_modules": modules,
        "target_parameters": [name for name in names if name not in layers] or None,
        "fan_in_fan_out": bool(modules) and all(isinstance(_inside(layers[name]), Conv1D) for name in modules),
        "modules_to_save": [name for name in head_modules(model) if name not in _PEFT_HEADS] or None,
        "bias": "none",
    }


def _inside(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if is_adapted(module) else module  # type: ignore[operator]


def _task_type(model: Any) -> TaskType | None:
    if head_modules(model):
        return TaskType.SEQ_CLS
    if model.config.is_encoder_decoder:
        return TaskType.SEQ_2_SEQ_LM
    return TaskType.CAUSAL_LM if model.can_generate() else None
