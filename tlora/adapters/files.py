"""The files of a saved adapter: `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, and ours.

Ours are in the folder ``tlora/``. No result may lie beside ``adapter_model.safetensors``: some engines read every
``*.safetensors`` there. The two files are validated before PEFT allocates what the config asks for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors
from torch import Tensor

from tlora.adapters.peft_config import expert_parameter, expert_stem, module_ranks, module_scalings
from tlora.adapters.update import LoraUpdate, expert_factors, saved_factors
from tlora.results import Meta, read_result
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT_RECORD, MODEL_CONFIG
from tlora.utils.files import digest, foreign_lora, read_json

_ROWS = re.compile(r"\.(lora_A\.weight|lora_embedding_A)$")

PREFIX = "base_model.model."
"""Prefix that PEFT gives the names of modules in the file."""
LINEAR, EMBEDDING = (".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")
"""Ends of the names of ``A`` and ``B`` in the file."""
RUN = Path("tlora", "run.safetensors")
"""The `TrainingRun` of an adapter that was trained."""
INITIAL = Path("tlora", "initial.json")
"""Record of an adapter without a run: who wrote it, and what is known of its base and its ``A``."""
PAGE = Path("README.md")
"""Instructions in the folder of an adapter that was not trained yet."""
PAGE_TITLE = "# An untrained LoRA adapter for "
"""How that page begins; one that begins otherwise is the user's."""

BASE, SAMPLES, FROZEN_A, WRITER, SECONDS = "base", "digest of samples", "frozen_a", "written by", "seconds"
"""Keys of the records."""
SAVE_INITIAL, EXTRACT, COMPRESS, COMBINE = "save_initial", "extract", "compress", "combine"
MEASURE_SCALES, EXPORT, TRAINING = "measure_scales", "export", "training"
"""Writers of an adapter."""

ARGUMENTS = "arguments.json"
"""Arguments of a training that resuming it cannot change, in a checkpoint; written after everything else."""


def earlier_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of the adapter in a folder that a new adapter replaces; a page that the user wrote is not among them."""
    page = Path(folder, PAGE)
    is_ours = page.is_file() and page.read_bytes().startswith(PAGE_TITLE.encode())
    return [Path(ADAPTER_WEIGHTS), RUN, INITIAL, *([PAGE] if is_ours else [])]


def refuse_other_writer(folder: str | os.PathLike[str], writer: str) -> None:
    """Refuse a model's folder, and to replace what another function wrote; training replaces an untrained start."""
    root = Path(folder)
    if (root / MODEL_CONFIG).is_file() and writer != EXPORT:
        raise FileExistsError(
            f"{folder} holds a model ({MODEL_CONFIG}), which would be loaded with the adapter from then on: choose "
            "another folder"
        )
    there = _initial_record(root).get(WRITER, "another program")
    if (root / RUN).exists():
        there = TRAINING
    elif (root / EXPORT_RECORD).exists():
        there = EXPORT
    if (there, writer) == (SAVE_INITIAL, TRAINING):
        return
    if there != writer and any((root / name).exists() for name in (ADAPTER_WEIGHTS, RUN)):
        raise FileExistsError(
            f"{root / ADAPTER_WEIGHTS} was written by {there}, and {writer} does not replace it: choose another folder"
        )


def validate_adapter(folder: Path, reader: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return ``adapter_config.json`` and the shapes of the tensors by key, after checking that the adapter is whole.

    ``reader`` is the function that reads it, for the message.
    """
    check_files(folder)
    config, shapes = read_config(folder, reader), read_shapes(folder)
    _check_ranks(folder, config, shapes)
    _check_numbers(folder)
    return config, shapes


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks a file of the adapter, or holds another adapter than its run trained."""
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            if conversion := foreign_lora(folder):
                raise ValueError(conversion)
            hint = ""
            if name == ADAPTER_CONFIG:
                hint = " (a copy or a save broke off: copy or save it again)"
            elif (folder / "adapter_model.bin").is_file():
                hint = " (adapter_model.bin can run code when it is read: save it as safetensors)"
            raise FileNotFoundError(
                f"no adapter in {folder}: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, no {name} there{hint}"
            )
    for name, written in read_training_record(folder).files.items():
        if digest(folder / name) != written:
            raise ValueError(
                f"{folder / name} is not what this run trained: it was damaged or changed since; copy it again, or "
                f"remove {folder / RUN.parent} to load the adapter without its run"
            )


def read_config(folder: Path, reader: str) -> dict[str, Any]:
    """Read ``adapter_config.json``; ``reader`` is the function that does, for the message."""
    file = folder / ADAPTER_CONFIG
    try:
        config = read_json(file)
        kind = config["peft_type"]
        patterns = {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
        ranks = [config.get("r", 8), *patterns["rank_pattern"].values()]
        alphas = [config.get("lora_alpha", 8), *patterns["alpha_pattern"].values()]
        for pattern in chain(*patterns.values(), [str(config.get("target_modules") or "")]):
            re.compile(pattern)
        if not all(type(rank) is int and rank > 0 for rank in ranks) or not all(0 < a < float("inf") for a in alphas):
            raise ValueError(f"ranks {ranks[:3]}, alphas {alphas[:3]}")
        saved = config.get("modules_to_save") or []
        if not isinstance(saved, list) or not all(saved):  # an empty name is the end of every name, the model's too
            raise ValueError(f"modules_to_save={str(saved)[:100]}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, re.error) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is damaged, or not the config of a PEFT adapter ({why}): copy it again") from error
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {kind}: {reader} takes LoRA, PEFT itself all others")
    return config


def revision(config: Mapping[str, Any]) -> dict[str, Any]:
    """The argument ``revision`` of `tlora.load_model`, if the config names one."""
    return {"revision": name} if (name := config.get("revision")) else {}


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the saved tensors, by key, and none of the tensors."""
    with _explain_damage(folder), safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the saved tensors, by key."""
    with _explain_damage(folder):
        return load_file(folder / ADAPTER_WEIGHTS)


@contextlib.contextmanager
def _explain_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged ({error}): copy it again") from error


def split_updates(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str | Path
) -> tuple[dict[str, LoraUpdate], dict[str, LoraUpdate], dict[str, Tensor]]:
    """Return the updates of linear layers and of embeddings by full module name, and all other tensors by key.

    ``tensors`` have the names under which PEFT saves them; ``where`` they are from is for the message.
    """
    others = dict(tensors)
    linear, embeddings = (_take_updates(others, ends, config, where) for ends in (LINEAR, EMBEDDING))
    return linear, embeddings, others


def _take_updates(
    tensors: dict[str, Tensor], ends: tuple[str, str], config: Mapping[str, Any], where: str | Path
) -> dict[str, LoraUpdate]:
    """Take ``A`` and ``B``, whose names end so, out of the tensors, layer by layer."""
    pairs = {}
    for key in sorted((key for key in tensors if key.endswith(ends[0])), key=_numerically):
        stem = key.removesuffix(ends[0])
        a, b = tensors.pop(key), tensors.pop(stem + ends[1], None)
        if a.ndim != 2 or b is None or b.ndim != 2 or len(a) != b.shape[1]:
            factor = ends[1].split(".")[1]
            there = "is missing" if b is None else f"has shape {tuple(b.shape)}"
            raise ValueError(
                f"{key} in {where} has shape {tuple(a.shape)}, and its {factor} {there}: copy the file again"
            )
        pairs[stem.removeprefix(PREFIX)] = (a, b)
    if alone := next((key for key in tensors if key.endswith(ends[1])), None):
        raise ValueError(f"{alone} in {where} has no {ends[0].split('.')[1]}: the file is incomplete, copy it again")
    names = {stem: _target_name(stem, config) for stem in pairs}
    targets = {names[stem]: pair for stem, pair in pairs.items()}
    ranks, scalings = module_ranks(config, targets), module_scalings(config, targets)
    for stem, name in names.items():
        if stem != name:
            targets[name] = expert_factors(*targets[name], len(targets[name][0]) // int(ranks[name]))
    return {name: LoraUpdate(name, a, b, scalings[name]) for name, (a, b) in targets.items()}


def _target_name(stem: str, config: Mapping[str, Any]) -> str:
    """Return the name of the module, or of the parameter with experts, whose factors are saved under ``stem``."""
    return expert_parameter(stem, config) or stem


def target_shapes(sizes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return ``(d_out, d_in)`` of the adapted modules, and of one expert of adapted parameters, by the saved shapes."""
    stems = [stem for key in sizes if (stem := key.removesuffix(LINEAR[0])) != key and stem + LINEAR[1] in sizes]
    return {
        _target_name(stem.removeprefix(PREFIX), config): (sizes[stem + LINEAR[1]][0], sizes[stem + LINEAR[0]][1])
        for stem in stems
    }


def factor_tensors(updates: Iterable[LoraUpdate], ends: tuple[str, str] = LINEAR) -> dict[str, Tensor]:
    """Return ``A`` and ``B`` of updates under the names that PEFT saves them by."""
    updates = list(updates)
    parameters = {update.module for update in updates if update.has_experts}
    return {
        f"{PREFIX}{expert_stem(update.module, parameters) if update.has_experts else update.module}{end}": factor
        for update in updates
        for end, factor in zip(ends, saved_factors(update), strict=True)
    }


def _numerically(key: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]


def _check_numbers(folder: Path) -> None:
    """Refuse an adapter with a tensor that is not finite, or an A or B that is not floating-point."""
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(key)
            if not (torch.isfinite(tensor.float()).all() if tensor.is_floating_point() else ".lora_" not in key):
                raise ValueError(
                    f"{key} in {folder / ADAPTER_WEIGHTS} is not finite, or not floating-point ({tensor.dtype}): it is "
                    "damaged, or its training diverged; take an earlier checkpoint, or copy it again"
                )


def _check_ranks(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an adapter whose config gives other ranks than its tensors have."""
    stems = {
        _ROWS.sub("", key).removeprefix(PREFIX): shape[0] if shape else 0
        for key, shape in shapes.items()
        if _ROWS.search(key)
    }
    ranks = {_target_name(stem, config): rank for stem, rank in stems.items()}
    experts = {name for stem, name in ((stem, _target_name(stem, config)) for stem in stems) if stem != name}
    for name, expected in module_ranks(config, ranks).items():
        rank = ranks[name]
        if expected != rank and not (name in experts and rank % expected == 0):
            raise ValueError(
                f"{name} has rank {rank} in {folder / ADAPTER_WEIGHTS} and {expected:g} by the config: the two files "
                "do not belong together, copy both again"
            )
    default = config.get("r", 8)
    if ranks and default > max(size for key, shape in shapes.items() if _ROWS.search(key) for size in shape):
        raise ValueError(f"r={default} in {folder / ADAPTER_CONFIG}, and no module has that rank: copy the file again")


@dataclass(frozen=True)
class TrainingRecord:
    """What an adapter's folder records of its training; with ``meta`` and SHA-256 of its two files only for a run."""

    fingerprints: dict[str, Tensor] | None = None
    frozen_a: bool = False
    meta: Meta | None = None
    files: dict[str, str] = field(default_factory=dict)


def read_training_record(folder: Path) -> TrainingRecord:
    """Read the record of a run, of a checkpoint of `train`, or of an adapter before training; empty elsewhere."""
    if (folder / RUN).is_file():
        record = read_result(folder / RUN, {"TrainingRun": TrainingRecord})
        if record.files.keys() != {ADAPTER_CONFIG, ADAPTER_WEIGHTS}:  # format 7 has no checksum
            raise ValueError(
                f"{folder / RUN} is damaged: it names the adapter's files {list(record.files)}; copy it again, or "
                f"remove {folder / RUN.parent} to load the adapter without its run"
            )
        return record
    # PEFT saves an adapter that is not called "default" in a folder of its own, inside the checkpoint.
    start = checkpoint_record(folder) or checkpoint_record(folder.parent) or _initial_record(folder)
    base = {name: torch.tensor(values) for name, values in start[BASE].items()} if BASE in start else None
    return TrainingRecord(base, start.get(FROZEN_A, False))


def _initial_record(folder: Path) -> dict[str, Any]:
    return read_json(folder / INITIAL) if (folder / INITIAL).is_file() else {}


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter into an empty folder, with a record for `tlora.load_adapter` if there is no run."""
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    blob = dump_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}
    )
    (folder / ADAPTER_WEIGHTS).write_bytes(blob)
    if record:
        (folder / INITIAL).parent.mkdir()
        (folder / INITIAL).write_text(json.dumps(record))


def checkpoint_record(checkpoint: Path) -> dict[str, Any] | None:
    """Read what `train` recorded in a checkpoint; None if it did not."""
    try:
        record = read_json(checkpoint / ARGUMENTS)
    except (OSError, ValueError):
        return None
    return record if SAMPLES in record else None
