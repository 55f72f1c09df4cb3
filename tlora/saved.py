"""The two files of a saved adapter: that they are there, undamaged, of LoRA, and belong together.

Checked before PEFT or torch make anything of them: what a config asks for is allocated as soon as it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tlora.adapter import EXPERTS
from tlora.engines import Adapter
from tlora.run import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, RUN, check_adapter
from tlora.utils.files import read_json

_ROWS = re.compile(r"\.(lora_A\.weight|lora_embedding_A)$")


def checked(folder: Path, reader: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Config, and shapes of the tensors by key, of an adapter that is whole.

    Parameters
    ----------
    folder : pathlib.Path
        The adapter's.
    reader : str
        Who reads it, for the message.

    Raises
    ------
    FileNotFoundError
        If there is no adapter in the folder.
    ValueError
        If it is damaged, none of LoRA, or not of one piece.
    """
    check_files(folder)
    config, shapes = lora_config(folder, reader), saved_shapes(folder)
    check_ranks(folder, config, shapes)
    check_numbers(folder)
    return config, shapes


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks one of them, or has another one than its run has trained.

    Raises
    ------
    FileNotFoundError
        If one is missing; a pickled ``adapter_model.bin`` does not count, for it can run code when it is read.
    ValueError
        If there is a record of a run, and the adapter is not the one that it trained.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            pickled = " (adapter_model.bin can run code when it is read: save it as safetensors)"
            hint = pickled if (folder / "adapter_model.bin").is_file() else ""
            raise FileNotFoundError(
                f"no adapter in {folder}: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, no {name} there{hint}"
            )
    if (folder / RUN).is_dir():
        check_adapter(folder)


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
        If the file is no config of PEFT's, that of another kind of adapter, or a value is none that LoRA can have.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = read_json(file)
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is truncated, or no config of a PEFT adapter ({why}): copy it again") from error
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {kind}: {reader} takes LoRA, PEFT itself all others")
    for name, (is_one, kind) in _VALUES.items():
        if name in config and not is_one(config[name]):
            raise ValueError(f"{name}={str(config[name])[:100]} in {file}: it must be {kind}; copy the file again")
    return dict(config)


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _rank(value: object) -> bool:
    return isinstance(value, int) and _positive(value)


def _name(value: object) -> bool:
    return isinstance(value, str | None)


def _names(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _pattern(value: object) -> bool:
    try:
        re.compile(str(value))
    except (re.error, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


def _patterns_of(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        found = {} if value is None else value
        return isinstance(found, dict) and all(_pattern(key) and is_one(one) for key, one in found.items())

    return check


_VALUES: dict[str, tuple[Callable[[object], bool], str]] = {
    "r": (_rank, "a whole number above 0"),
    "lora_alpha": (_positive, "a number above 0"),
    "rank_pattern": (_patterns_of(_rank), "ranks by regular expressions"),
    "alpha_pattern": (_patterns_of(_positive), "numbers above 0 by regular expressions"),
    "target_modules": (lambda value: _names(value) or _pattern(value), "names or a regular expression"),
    "modules_to_save": (_names, "names or null"),
    "base_model_name_or_path": (_name, "a name or null"),
    "task_type": (_name, "a name or null"),
    "bias": (("none", "all", "lora_only").__contains__, "none, all or lora_only"),
}
"""What values that are read here, or by which PEFT allocates, must be."""


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the saved tensors, by key; none of them is read.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, OverflowError, ValueError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged ({error}): copy it again") from error


def check_numbers(folder: Path) -> None:
    """Refuse an adapter with a tensor that is not finite, or an A or B that is no floats.

    Raises
    ------
    ValueError
        If there is one, naming it.
    """
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            if not (torch.isfinite(tensor.float()).all() if tensor.is_floating_point() else ".lora_" not in key):
                raise ValueError(
                    f"{key} in {folder / ADAPTER_WEIGHTS} is not finite, or no floats ({tensor.dtype}): it is damaged, "
                    "or its training diverged; take an earlier checkpoint, or copy it again"
                )


def check_ranks(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an adapter whose config gives other ranks than its tensors have.

    Raises
    ------
    ValueError
        If it does, or gives a default that no module here could have.
    """
    rows = {_ROWS.sub("", key).removeprefix(PREFIX): shape for key, shape in shapes.items() if _ROWS.search(key)}
    empty = next((name for name, shape in rows.items() if not shape or not shape[0]), None)
    if empty is not None:
        raise ValueError(f"{empty} has no rank in {folder / ADAPTER_WEIGHTS}: it is damaged, copy it again")
    adapter = Adapter(config, {name: shape[0] for name, shape in rows.items()})
    default, most = config.get("r", 8), max((size for shape in rows.values() for size in shape), default=0)
    for name, rank in adapter.ranks.items():
        said = adapter.pattern(name, "rank_pattern", default)
        if said != rank and config.get("target_parameters") and rank % said == 0:
            raise ValueError(f"{folder} holds LoRA of experts (target_parameters), {EXPERTS}")
        if said != rank:
            raise ValueError(
                f"{name} has rank {rank} in {folder / ADAPTER_WEIGHTS} and {said:g} by the config: the two files do "
                "not belong together"
            )
    if rows and default > most:
        raise ValueError(f"r={default} in {folder / ADAPTER_CONFIG}: no module here has so many; copy the file again")
