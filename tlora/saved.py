"""The two files of a saved adapter: that they are there, and that they are of LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tlora.run import ADAPTER, ADAPTER_CONFIG


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks one of them.

    Raises
    ------
    FileNotFoundError
        If it does; a pickled ``adapter_model.bin`` does not count, for it can run code when it is read.
    """
    for name in (ADAPTER_CONFIG, ADAPTER):
        if not (folder / name).is_file():
            pickled = " (adapter_model.bin can run code when it is read: save it as safetensors)"
            hint = pickled if (folder / "adapter_model.bin").is_file() else ""
            raise FileNotFoundError(
                f"no adapter in {folder}: expected {ADAPTER_CONFIG} and {ADAPTER}, no {name} there{hint}"
            )


def lora_config(folder: Path, reader: str) -> dict[str, Any]:
    """What ``adapter_config.json`` holds.

    Parameters
    ----------
    folder : pathlib.Path
        The adapter's.
    reader : str
        Who reads it, for the message.

    Raises
    ------
    ValueError
        If the file is no config of PEFT's, or that of another kind of adapter.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_bytes())
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is truncated, or no config of a PEFT adapter ({why}): copy it again") from error
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {kind}: {reader} takes LoRA, PEFT itself all others")
    return dict(config)
