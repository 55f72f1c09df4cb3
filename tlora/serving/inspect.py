"""Inspect a saved LoRA adapter, whoever trained it."""

from __future__ import annotations

import os

from tlora.adapters.files import LINEAR, read_tensors, read_training_record, split_updates, validate_adapter
from tlora.adapters.hub import adapter_folder
from tlora.adapters.peft_config import COMPUTES_MORE
from tlora.results import Meta
from tlora.serving.inspection import Inspection
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tlora.utils.validation import check_arguments

_KEPT = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "init_lora_weights",
    "modules_to_save", "target_modules", "task_type", "base_model_name_or_path", "target_parameters",
    *COMPUTES_MORE,
)  # fmt: skip


def inspect(folder: str | os.PathLike[str]) -> Inspection:
    """Read a LoRA adapter without its base model: ranks, scales, used ranks, and what engines compute from it.

    Parameters
    ----------
    folder : path-like or str
        A PEFT LoRA adapter, whoever trained it: its folder, or its name on the hub, ``owner/name`` or
        ``owner/name@revision``.

    Returns
    -------
    Inspection

    Raises
    ------
    FileNotFoundError
        If there is no adapter in the folder, or on the hub.
    ValueError
        If a file is damaged, the adapter is not a LoRA adapter, an ``A`` has no ``B``, or ranks differ from those of
        the config.

    Notes
    -----
    Only ``adapter_model.safetensors`` is read: a pickled ``adapter_model.bin`` can run code when it is loaded.

    Examples
    --------
    >>> engines = tlora.inspect("adapter").engines()
    >>> list(engines.columns)
    ['engine', 'wrong', 'smallest', 'largest', 'refused']
    """
    check_arguments(inspect, locals())
    folder = adapter_folder(folder)
    config, _ = validate_adapter(folder, "inspect")
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"{folder / ADAPTER_CONFIG} has no {key}: it is truncated, copy it again")
    config = {key: config[key] for key in _KEPT if key in config}
    tensors = read_tensors(folder)
    updates, _, _ = split_updates(tensors, config, folder / ADAPTER_WEIGHTS)
    if not updates:
        raise ValueError(
            f"{folder / ADAPTER_WEIGHTS} holds no lora_A of a linear layer, but {len(tensors)} other tensors: name "
            "another adapter"
        )
    return Inspection(
        config=config,
        ranks={name: update.rank for name, update in updates.items()},
        shapes={name: update.shape for name, update in updates.items()},
        singular_values={name: update.singular_values() for name, update in updates.items()},
        others={key: tuple(tensor.shape) for key, tensor in tensors.items() if not key.endswith(LINEAR)},
        meta=read_training_record(folder).meta or Meta(config.get("base_model_name_or_path") or "an unnamed model"),
    )
