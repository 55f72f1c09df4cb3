"""The two files of a saved adapter: that they are there, undamaged, of LoRA, and belong together.

Checked before PEFT or torch make anything of them: what a config asks for is allocated as soon as it is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlora.adapters.lora_layers import EXPERTS, rewrites_base
from tlora.results import Meta, read_result
from tlora.utils.files import digest, read_json

_ROWS = re.compile(r"\.(lora_A\.weight|lora_embedding_A)$")


COMPUTES_MORE = ("lora_bias", "use_qalora", "alora_invocation_tokens", "arrow_config", "layer_replication")
"""Keys of ``adapter_config.json`` with which it is not ``W + s B A`` that is computed."""


ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the names of modules in the file."""
RUN = Path("tlora", "run.safetensors")
INITIAL = Path("tlora", "initial.json")
"""What an adapter that was not trained yet was attached with."""
PAGE = Path("README.md")
"""What an adapter that was not trained yet is to be done with."""


BASE, SAMPLES, FROZEN_A = "base", "digest of samples", "frozen_a"


ARGUMENTS = "arguments.json"
"""What a checkpoint was trained with, of what a resumed training cannot change; written once all else is on disk."""


def refuse_more_than_lora(config: Mapping[str, Any], way_out: str) -> None:
    """Refuse, by name, an adapter that is not ``W + s B A``; ``way_out`` is what its owner can do.

    Raises
    ------
    ValueError
        If it computes something else, or has changed the base that A and B are added to.
    """
    if rewrites_base(config):
        start = config["init_lora_weights"]
        raise ValueError(
            f"init_lora_weights={start!r} has changed the base's own weights, A and B lack that: {way_out}"
        )
    for key in ("use_dora", "target_parameters", *COMPUTES_MORE):
        if config.get(key):
            raise ValueError(f"{key}={config[key]!r} computes more than W + s B A: {way_out}")


def earlier_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of the adapter in a folder that another one replaces; a page of the user's own is not among them."""
    return [Path(ADAPTER_WEIGHTS), RUN, *([INITIAL, PAGE] if Path(folder, INITIAL).exists() else [])]


def refuse_trained(folder: str | os.PathLike[str]) -> None:
    """Refuse to write what was not trained over the adapter of a training, whose record stays there.

    Raises
    ------
    FileExistsError
        If the folder holds one.
    """
    if Path(folder, RUN).exists():
        raise FileExistsError(f"{folder} holds a trained adapter, which only training replaces: choose another folder")


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
    config, shapes = saved_config(folder, reader), saved_shapes(folder)
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
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            hint = ""
            if name == ADAPTER_CONFIG:
                hint = " (a copy or a save broke off: copy or save it again)"
            elif (folder / "adapter_model.bin").is_file():
                hint = " (adapter_model.bin can run code when it is read: save it as safetensors)"
            raise FileNotFoundError(
                f"no adapter in {folder}: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, no {name} there{hint}"
            )
    if (folder / RUN).is_file():
        _check_trained(folder)


def _check_trained(folder: Path) -> None:
    files = read_training_record(folder).files
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if digest(folder / name) != files.get(name):
            raise ValueError(
                f"{folder / name} is not what this run trained: it is truncated, damaged or was changed since; copy it "
                f"again, or remove {folder / RUN.parent} to take the adapter as somebody else's"
            )


def saved_config(folder: Path, reader: str) -> dict[str, Any]:
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
        If the file is not a PEFT config, is that of another kind of adapter, or holds a value that LoRA cannot have.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = read_json(file)
        kind = config["peft_type"]
    except (ValueError, KeyError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is truncated, or not the config of a PEFT adapter ({why}): copy it again") from error
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {kind}: {reader} takes LoRA, PEFT itself all others")
    for name, (is_one, kind) in _VALUES.items():
        if name in config and not is_one(config[name]):
            raise ValueError(f"{name}={str(config[name])[:100]} in {file}: it must be {kind}; copy the file again")
    return config


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
    "revision": (_name, "a name or null"),
    "task_type": (_name, "a name or null"),
    "bias": (("none", "all", "lora_only").__contains__, "none, all or lora_only"),
}
"""What values that are read here, or by which PEFT allocates, must be."""


def revision(config: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of `tlora.load_model` for the base's own version, where a config names one."""
    return {"revision": name} if (name := config.get("revision")) else {}


@contextlib.contextmanager
def named_by(folder: Path, way_out: str = "model=") -> Iterator[None]:
    """Add to an error about a base that its name comes from the adapter in a folder."""
    try:
        yield
    except (OSError, ValueError) as error:
        error.add_note(f"(named by {folder / ADAPTER_CONFIG}: pass {way_out} where it is elsewhere now)")
        raise


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


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The saved tensors, by key.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is damaged ({error}): copy it again") from error


def split_factors(
    tensors: Mapping[str, Tensor], where: str | Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """``A`` and ``B`` of each linear layer by full module name, layer by layer, and all other tensors by key.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of an adapter, by the names under which PEFT saves them.
    where : str or pathlib.Path
        Where they are from, for the message.

    Raises
    ------
    ValueError
        If an ``A`` has no ``B`` that fits, or there is none of a linear layer.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    others = dict(tensors)
    for key in sorted((key for key in tensors if key.endswith(".lora_A.weight")), key=_numerically):
        other = key.replace(".lora_A.weight", ".lora_B.weight")
        a, b = tensors[key], tensors.get(other)
        if a.ndim != 2 or b is None or b.ndim != 2 or len(a) != b.shape[1]:
            there = "is missing" if b is None else f"has shape {tuple(b.shape)}"
            raise ValueError(f"{key} in {where} has shape {tuple(a.shape)}, and its lora_B {there}")
        pairs[key.removesuffix(".lora_A.weight").removeprefix(PREFIX)] = (a, b)
        del others[key], others[other]
    if not pairs:
        raise ValueError(f"{where} holds no lora_A of a linear layer: {len(others)} other tensors")
    return pairs, others


def _numerically(key: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]


def check_numbers(folder: Path) -> None:
    """Refuse an adapter with a tensor that is not finite, or an A or B that is not floating-point.

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
                    f"{key} in {folder / ADAPTER_WEIGHTS} is not finite, or not floating-point ({tensor.dtype}): it is "
                    "damaged, or its training diverged; take an earlier checkpoint, or copy it again"
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
        raise ValueError(f"r={default} in {folder / ADAPTER_CONFIG}, and no module has that rank: copy the file again")


@dataclass(frozen=True)
class Adapter:
    """What engines look at.

    Attributes
    ----------
    config : dict
        ``adapter_config.json``.
    ranks : dict of int
        Rows of ``A`` of each module, by full module name.
    others : collection of str
        Names of the tensors that are no ``A`` or ``B`` of a linear layer.
    """

    config: Mapping[str, Any]
    ranks: Mapping[str, int]
    others: Collection[str] = ()

    def pattern(self, name: str, which: str, default: float) -> float:
        """What PEFT reads for a module from ``rank_pattern`` or ``alpha_pattern``."""
        patterns = self.config.get(which) or {}
        return float(patterns.get(get_pattern_key(list(patterns), name), default))

    @property
    def power(self) -> float:
        """Of the rank, that alpha is divided by: one half under rsLoRA."""
        return 0.5 if self.config.get("use_rslora") else 1.0

    def more(self, known: Collection[str] = ()) -> str:
        """What it holds beside ``A``, ``B`` and saved modules of known names; empty where there is nothing."""
        if self.config.get("bias", "none") != "none":
            return f"bias={self.config['bias']!r}"
        if self.config.get("use_dora"):
            return "DoRA"
        saved = set(self.config.get("modules_to_save") or ())
        if strange := sorted(saved.difference(known)):
            return f"modules_to_save={strange}"
        # Of embeddings A and B have names of their own.
        heads = tuple(f".{name}." for name in saved)
        stray = [name for name in self.others if ".lora_embedding_" not in name and not any(h in name for h in heads)]
        if stray:
            return f"{stray[0]}, which is neither A nor B"
        key = next((key for key in COMPUTES_MORE if self.config.get(key)), "")
        return key and f"{key}={self.config[key]!r}"


def by_layer(adapter: Adapter) -> dict[str, float]:
    """Rank and alpha of each module from the patterns, divided by the rank's root under rsLoRA: as PEFT."""
    config = adapter.config
    alphas = {name: adapter.pattern(name, "alpha_pattern", config["lora_alpha"]) for name in adapter.ranks}
    return {n: alphas[n] / adapter.pattern(n, "rank_pattern", config["r"]) ** adapter.power for n in adapter.ranks}


@dataclass(frozen=True)
class TrainingRecord:
    """What an adapter's folder says of the training that it comes from.

    Attributes
    ----------
    fingerprints : dict of (16,) float32 tensor, optional
        Of the base weights by full module name; None where nobody wrote them down.
    frozen_a : bool
        Every ``A`` was frozen.
    meta : Meta, optional
        Of the `TrainingRun`; None in a checkpoint and in other people's folders.
    files : dict of str
        SHA-256 of the adapter's two files by name, as the run was saved with them.
    """

    fingerprints: dict[str, Tensor] | None = None
    frozen_a: bool = False
    meta: Meta | None = None
    files: dict[str, str] = field(default_factory=dict)


def read_training_record(folder: Path) -> TrainingRecord:
    """The record of a run, of a checkpoint of `train`, or of an adapter before training; empty in other folders.

    Raises
    ------
    ValueError
        If the run is damaged or of a newer format.
    """
    if (folder / RUN).is_file():
        return read_result(folder / RUN, "TrainingRun", TrainingRecord)
    # PEFT saves an adapter that is not called "default" in a folder of its own, inside the checkpoint.
    record = checkpoint_record(folder) or checkpoint_record(folder.parent) or _initial_record(folder)
    base = {name: torch.tensor(values) for name, values in record[BASE].items()} if BASE in record else None
    return TrainingRecord(base, record.get(FROZEN_A, False))


def _initial_record(folder: Path) -> dict[str, Any]:
    return read_json(folder / INITIAL) if (folder / INITIAL).is_file() else {}


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], record: Mapping[str, Any] | None = None
) -> None:
    """Write an adapter into an empty folder, and where it has no run a record that `tlora.load` heeds.

    Parameters
    ----------
    folder : pathlib.Path
        Of `replace_files`, so that all of it or nothing gets to its place.
    tensors, config : mapping
        As PEFT reads them.
    record : mapping, optional
        What is known of the base and of ``A``.
    """
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS)  # safetensors lets its owner alone read it
    if record:
        (folder / INITIAL).parent.mkdir()
        (folder / INITIAL).write_text(json.dumps(record))


def checkpoint_record(checkpoint: Path) -> dict[str, Any] | None:
    """What `train` wrote down in a checkpoint, last of all; None where it did not."""
    try:
        record = read_json(checkpoint / ARGUMENTS)
    except (OSError, ValueError):
        return None
    return record if SAMPLES in record else None
