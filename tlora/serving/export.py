"""Export: an adapter that every server reads alike, whatever it makes of ranks and scales by layer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from peft import PeftModel
from torch import Tensor

from tlora.adapters.attach import merge
from tlora.adapters.files import ADAPTER_CONFIG, PREFIX, Adapter, refuse_trained, revision, write_adapter
from tlora.adapters.lora_layers import require_one_lora, shared_weight
from tlora.models.loading import floating_dtype, load_tokenizer
from tlora.models.weights import copy_sharing_weights
from tlora.serving.engines import SERVERS, Server
from tlora.serving.llama_cpp import FILE as GGUF_FILE
from tlora.serving.llama_cpp import write_gguf
from tlora.serving.uniform_lora import PlainLora, fill_layers, pad_to_rank, plain_lora, target_suffixes
from tlora.utils.defaults import EngineName, Format
from tlora.utils.files import check_folder, read_json, replace_files
from tlora.utils.packages import require

MODEL_CONFIG = "config.json"


RECORD = "export.json"
"""File of an exported folder that says of which format it is, and which files are part of it."""

_GGUF_FIELDS = {
    "general.architecture",
    "general.type",
    "general.file_type",
    "adapter.type",
    "adapter.lora.alpha",
}


def export(
    model: PeftModel,
    folder: str | os.PathLike[str],
    *,
    format: Format | None = None,
    engine: EngineName | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
) -> Path:
    """Write an adapter in a form that servers compute as it was trained.

    Servers differ in what they make of ``rank_pattern`` and ``alpha_pattern``: several read one global
    ``alpha / r`` and serve a mixed adapter with wrong scales, silently. Here ``B`` holds the scaling, so that all of
    them compute the same.

    Parameters
    ----------
    model : peft.PeftModel
        With a LoRA adapter that is active, not merged. It is only read.
    folder : path-like
        Folder to write; an earlier export of the same format in it is replaced, other files stay.
        With ``"gguf"`` a folder, in which the file is ``adapter.gguf``, or a file whose name ends in ``.gguf``.
    format : {"peft", "gguf", "merged"}, optional
        ``"peft"``: PEFT's own files with one rank for all modules (smaller ones are padded with zeros), the same
        modules in every layer, ``lora_alpha = r``, and a config that old versions read. ``"gguf"``: an adapter for
        llama.cpp. ``"merged"``: the whole model with its tokenizer, the adapter folded into its weights.
        Default: what the engine reads, ``"peft"`` without one.
    engine : str, optional
        One of ``tlora.serving.engines.SERVERS`` (``"vllm"``, ``"llama.cpp"``, ``"peft"``, ...): the adapter is
        checked against its limits, and padded to a rank that it can be set to.
    dtype : str or torch.dtype, optional
        Of what is written. Default: float32 for an adapter, the model's own for merged weights.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Written with merged weights. Default: that of the base model, by its name.

    Returns
    -------
    pathlib.Path
        The folder, or the GGUF file.

    Raises
    ------
    TypeError
        If it is not a PEFT model.
    ValueError
        If it has no LoRA layers, several active adapters or a merged one; if format, engine or dtype is unknown, the
        format cannot hold this adapter, the engine does not take it, or a number of it is beyond the dtype.
    FileExistsError
        If anything but such an export is in the place of what is written, or the base model. Nothing is computed then.
    OSError
        If it cannot be written; what was there is left as it was.

    Notes
    -----
    Scaling is folded in float32, before any cast. Merging takes memory for a second copy of the adapted weights.
    """
    kind, server = export_format(format, engine), None if engine is None else SERVERS[engine]
    precision = None if dtype is None else floating_dtype(dtype)
    require_one_lora(model, "export")
    path = gguf_file(Path(folder)) if kind == "gguf" else Path(folder)
    config = getattr(model, "config", None)
    check_place(path, kind, {"the base model": getattr(config, "name_or_path", "")})
    if kind == "merged":
        return _export_merged(model, path, precision, tokenizer)
    plain = plain_lora(model)
    if server is not None:
        _check_server(plain, server)
    precision = precision or torch.float32
    if kind == "gguf":
        return _export_gguf(model, plain, path, precision)
    return _export_peft(model, plain, path, precision, server.rank(plain.rank) if server else plain.rank)


def export_format(asked: str | None, engine: EngineName | None) -> Format:
    """The format to write for an engine.

    Raises
    ------
    ValueError
        If format or engine is unknown, or the engine does not read the format.
    ModuleNotFoundError
        If the package that writes the format is not installed.
    """
    if asked not in (None, *get_args(Format)):
        raise ValueError(f"format={asked!r}: choose one of {', '.join(get_args(Format))}")
    if engine not in (None, *SERVERS):
        raise ValueError(f"engine={engine!r}: choose one of {', '.join(SERVERS)}")
    reads = "peft" if engine is None else SERVERS[engine].reads
    if engine is not None and asked not in (None, "merged", reads):
        raise ValueError(f"{engine} reads adapters as '{reads}', not as '{asked}': leave out the format")
    if (asked or reads) == "gguf":
        require("gguf", "gguf")
    return cast(Format, asked or reads)


def gguf_file(path: Path) -> Path:
    """The file itself, or the one in a folder."""
    return path if path.suffix == ".gguf" else path / GGUF_FILE


def _check_server(plain: PlainLora, server: Server) -> None:
    heads = sorted(plain.config.modules_to_save) if plain.others else None
    config = {"r": plain.rank, "lora_alpha": plain.rank, "modules_to_save": heads}
    refused = server.engine.refusal(Adapter(config, dict.fromkeys(plain.factors, plain.rank)))
    if refused:
        raise ValueError(
            f"{server.engine.name} does not take this adapter ({refused}): export it merged into the weights, "
            "format='merged'"
        )


def _export_peft(model: PeftModel, plain: PlainLora, folder: Path, dtype: torch.dtype, rank: int) -> Path:
    factors = fill_layers(pad_to_rank(plain.factors, rank), model.get_base_model())
    tensors = {key: _cast(key, t, dtype) for key, t in plain.others.items()}
    for name, pair in factors.items():
        tensors |= {
            f"{PREFIX}{name}.lora_{part}.weight": _cast(name, x, dtype) for part, x in zip("AB", pair, strict=True)
        }
    config = _plain_config(plain, rank, target_suffixes(factors, model.get_base_model()))
    with replace_export(folder, "peft") as fresh:
        write_adapter(fresh, tensors, config)
    return folder


def _plain_config(plain: PlainLora, rank: int, targets: list[str]) -> dict[str, Any]:
    """Only what old and new readers know."""
    config = plain.config
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
        "target_modules": targets,
        **revision(vars(config)),
    }


def _export_gguf(model: PeftModel, plain: PlainLora, file: Path, dtype: torch.dtype) -> Path:
    if plain.others:
        raise ValueError(f"a GGUF adapter holds no head, and this one has {next(iter(plain.others))}: format='merged'")
    if shared := shared_weight(model):
        raise ValueError(
            f"{shared[0]} shares its weight with {shared[1]}, and a GGUF model holds that once, by the other's name: "
            "serve this adapter with PEFT"
        )
    for name, pair in plain.factors.items():
        for x in pair:
            _cast(name, x, dtype)  # refuses; the file's own scaling of B comes before its cast
    write_gguf(file, plain.factors, model.get_base_model().config, dtype)
    return file


def _cast(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    found = x.to(dtype) if x.is_floating_point() else x
    _refuse_infinite(name, found)
    return found


def _refuse_infinite(name: str, x: Tensor) -> None:
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite in {x.dtype}: export it in bfloat16 or float32")


def _export_merged(model: PeftModel, folder: Path, dtype: torch.dtype | None, tokenizer: Any) -> Path:
    name = model.config.name_or_path
    if tokenizer is None and not name:
        raise ValueError("the base model has no name by which its tokenizer could be loaded: pass tokenizer=")
    tokenizer = load_tokenizer(name) if tokenizer is None else tokenizer
    # PEFT's safe merge puts new tensors in place of those that are shared.
    copied, own = copy_sharing_weights(model), model.dtype
    wider = own if dtype is None else torch.promote_types(own, dtype)
    if wider != own:
        copied.to(wider)  # before: a small update is lost in the sum of a coarse type
    merged = merge(copied)
    if dtype is not None:
        merged.to(dtype)
        for key, tensor in merged.state_dict().items():
            _refuse_infinite(key, tensor)
    save_model(merged, tokenizer, folder)
    return folder


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its generation settings and its tokenizer: all of it, or nothing.

    Raises
    ------
    FileExistsError
        If the folder holds files, and no earlier merged export.
    OSError
        If it cannot be written; what was there is left as it was.
    """
    with replace_export(folder, "merged") as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for file in filter(Path.is_file, fresh.rglob("*")):
            shutil.copymode(fresh / MODEL_CONFIG, file)  # safetensors' own are for their owner alone


def check_place(path: Path, format: str, kept: Mapping[str, str | os.PathLike[str]]) -> None:
    """Refuse, before anything is computed, a place where an export would replace anything but an earlier one.

    Parameters
    ----------
    path : pathlib.Path
        The folder, or the file of ``"gguf"``; it need not be there.
    format : {"peft", "gguf", "merged"}
        Of the export.
    kept : mapping of str to path-like
        By what they are, paths that are never replaced; names of a hub and empty ones lie nowhere.

    Raises
    ------
    FileExistsError
        If something else would be replaced; the message names it.
    """
    target = path.resolve()
    for what, place in kept.items():
        if str(place) and target.exists() and target == Path(place).resolve():
            raise FileExistsError(f"{path} is {what}, which is never replaced: choose another path")
    if format == "gguf":
        _check_file(target)
    else:
        _earlier(target, format)


@contextlib.contextmanager
def replace_export(path: Path, format: str) -> Iterator[Path]:
    """A temporary folder whose files take the place of an earlier export's, with the record by which the next may.

    Parameters
    ----------
    path : pathlib.Path
        The folder to write.
    format : {"peft", "merged"}
        Of what is written.

    Yields
    ------
    pathlib.Path
        The temporary folder.

    Raises
    ------
    FileExistsError, OSError
        As `check_place` and `tlora.utils.files.replace_files`.
    """
    last = ADAPTER_CONFIG if format == "peft" else MODEL_CONFIG
    with replace_files(path, last=last, first=RECORD, earlier=_earlier(path, format)) as fresh:
        yield fresh
        files = sorted(file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file())
        (fresh / RECORD).write_text(json.dumps({"format": format, "files": files}, indent=1))


def _earlier(folder: Path, format: str) -> list[Path]:
    """Files of the export in a folder, which must hold one of the same format, or nothing."""
    check_folder(folder, RECORD)
    if not (folder / RECORD).exists():
        return []
    refuse_trained(folder)
    try:
        record = read_json(folder / RECORD)
        written, files = record["format"], [Path(name) for name in record["files"]]
        if any(file.is_absolute() or ".." in file.parts for file in files):
            raise ValueError("it names a file elsewhere")
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{folder / RECORD} is damaged: choose another path, or remove it first") from error
    if written != format:
        raise FileExistsError(f"{folder} is an export as '{written}', not '{format}': choose another path")
    return files


def _check_file(file: Path) -> None:
    if not file.exists():
        return
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (OSError, ValueError, LookupError) as error:
        raise FileExistsError(f"{file} exists and is not a GGUF file: choose another path or remove it") from error
    if {name for name in fields if not name.startswith("GGUF.")} != _GGUF_FIELDS:
        raise FileExistsError(f"{file} is a GGUF file but not an earlier export: choose another path or remove it")
