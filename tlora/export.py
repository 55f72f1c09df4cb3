"""Export: an adapter that every server reads alike, whatever it makes of ranks and scales by layer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save as dump_tensors
from torch import Tensor

from tlora.adapter import ADAPTER, adapter_layers
from tlora.files import replace_folder, write_bytes


def export(model: PeftModel, folder: str | os.PathLike[str]) -> Path:
    """Write a PEFT adapter with one rank for all modules, all scaling folded into B, and no patterns.

    Servers differ in what they make of ``rank_pattern`` and ``alpha_pattern``: several read one global
    ``alpha / r`` and serve a mixed adapter with wrong scales, silently. Here every module has the largest rank
    (smaller ones are padded with zeros), ``lora_alpha = r``, and ``B`` holds the scaling, so that all of them compute
    the same.

    Parameters
    ----------
    model : peft.PeftModel
        With one LoRA adapter, not merged. It is only read.
    folder : path-like
        Folder to write; an exported or saved adapter in its place is replaced as a whole.

    Returns
    -------
    pathlib.Path
        The folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises
    ------
    TypeError
        If it is no PEFT model.
    ValueError
        If it has no LoRA layers, or is merged.
    OSError
        If the folder cannot be written; what was there is left as it was.

    Notes
    -----
    Scaling is folded in float32, before any cast.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"export takes the PeftModel of attach or load, not a {type(model).__name__}")
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("the model has no LoRA layers to export: attach an adapter first")
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is merged into the weights: unmerge it before exporting, model.unmerge_adapter()")
    rank = max(layer.r[ADAPTER] for layer in layers.values())
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)  # else PEFT asks a hub about the vocabulary
    for name, layer in layers.items():
        key = f"base_model.model.{name}.lora_{{}}.weight"
        tensors[key.format("A")] = _padded(tensors[key.format("A")].float(), 0, rank)
        tensors[key.format("B")] = _padded(tensors[key.format("B")].float() * layer.scaling[ADAPTER], 1, rank)
    blob = dump_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    with replace_folder(folder, expects="adapter_config.json") as fresh:
        write_bytes(fresh / "adapter_model.safetensors", blob)
        write_bytes(fresh / "adapter_config.json", json.dumps(_plain_config(model, rank), indent=2).encode())
    return Path(folder)


def _padded(x: Tensor, dimension: int, rank: int) -> Tensor:
    missing = list(x.shape)
    missing[dimension] = rank - x.shape[dimension]
    return torch.cat([x, x.new_zeros(missing)], dimension)


def _plain_config(model: PeftModel, rank: int) -> dict[str, Any]:
    """Only what old and new readers know."""
    config: Any = model.peft_config[ADAPTER]
    targets = config.target_modules
    return {
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "modules_to_save": sorted(set(config.modules_to_save)) if config.modules_to_save else None,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }
