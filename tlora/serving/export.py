"""Export an adapter in a form that every server reads the same way, whatever it makes of ranks by module."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tlora.adapters.adapter import LoraAdapter
from tlora.adapters.attach import merge
from tlora.adapters.files import EXPORT, factor_tensors, refuse_other_writer, revision, write_adapter
from tlora.adapters.lora_layers import require_one_lora, shared_weight
from tlora.models.loading import floating_dtype, load_tokenizer
from tlora.models.weights import copy_sharing_weights
from tlora.serving.engines import SERVERS, AdapterLayout, Server
from tlora.serving.llama_cpp import FILE as GGUF_FILE
from tlora.serving.llama_cpp import write_gguf
from tlora.serving.uniform_lora import MERGED, fill_layers, pad_to_rank, target_suffixes, uniform_lora
from tlora.utils.defaults import EngineName, Format
from tlora.utils.file_names import ADAPTER_CONFIG, EXPORT_RECORD, MODEL_CONFIG
from tlora.utils.files import check_place, read_json, replace_files
from tlora.utils.logs import without_noise
from tlora.utils.packages import require
from tlora.utils.validation import check_arguments, require_choice

_GGUF_FIELDS = {"general.architecture", "general.type", "general.file_type", "adapter.type", "adapter.lora.alpha"}


def export(
    model: PeftModel,
    folder: str | os.PathLike[str],
    *,
    format: Format | None = None,
    engine: EngineName | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write an adapter in a form that servers compute as it was trained.

    Servers differ in how they read ``rank_pattern`` and ``alpha_pattern``: several use one global ``alpha / r`` and
    silently serve an adapter of mixed ranks with wrong scales. Here ``B`` holds the scaling, so that all of them
    compute the same.

    Parameters
    ----------
    model : peft.PeftModel
        With a LoRA adapter that is active and not merged. It is only read.
    folder : path-like
        Folder to write; an earlier export of the same format in it is replaced, other files stay. With ``"gguf"`` a
        folder for ``adapter.gguf``, or a file whose name ends in ``.gguf``.
    format : {"peft", "gguf", "merged"}, optional
        ``"peft"``: PEFT's own files with one rank for all modules (smaller ones are padded with zeros), the same
        modules in every layer, ``lora_alpha = r``, and a config that old versions read. ``"gguf"``: an adapter for
        llama.cpp. ``"merged"``: the whole model with its tokenizer, the adapter folded into its weights. By default
        what the engine reads; without engine ``"gguf"`` for a file that ends in .gguf, and otherwise ``"peft"``.
    engine : {"peft", "vllm", "sglang", "tensorrt-llm", "lorax", "llama.cpp"}, optional
        Check the adapter against the limits of this engine, and pad it to a rank that the engine allows.
    dtype : str or torch.dtype, optional
        Type of what is written. Default: float32 for an adapter, the model's own for merged weights.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Written with merged weights. Default: that of the base model, by its name.

    Returns
    -------
    pathlib.Path
        The folder, or the GGUF file.

    Raises
    ------
    ValueError
        If the model does not have exactly one LoRA adapter, the format cannot hold it, the engine does not accept it,
        or a number exceeds the range of the dtype.
    FileExistsError
        If anything but an earlier export of the format is in that place. Nothing is computed then.

    Notes
    -----
    Scaling is folded in float32, before any cast. Merging takes memory for a second copy of the adapted weights.

    Examples
    --------
    >>> folder = tlora.export(adapted, "served", engine="vllm")
    >>> tlora.inspect(folder).engines()["wrong"].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0]
    >>> tlora.export(adapted, "whole", format="merged").name
    'whole'
    """
    check_arguments(export, locals())
    kind, server = choose_format(format, engine, Path(folder)), None if engine is None else SERVERS[engine]
    precision = None if dtype is None else floating_dtype(dtype)
    require_one_lora(model, "export")
    path = gguf_file(Path(folder)) if kind == "gguf" else Path(folder)
    check_export_place(path, kind, [model.config.name_or_path])
    if kind == "merged":
        return _export_merged(model, path, precision, tokenizer)
    adapter = uniform_lora(model)
    rank = max(adapter.ranks.values())
    if server is not None:
        _check_server(adapter, rank, server)
    precision = precision or torch.float32
    if kind == "gguf":
        return _export_gguf(model, adapter, path, precision)
    return _export_peft(model, adapter, path, precision, server.padded_rank(rank) if server else rank)


def choose_format(format: str | None, engine: EngineName | None, path: Path) -> Format:
    """Return the format to write for an engine, or into a file that ends in .gguf."""
    if format is not None:
        require_choice(format, "format", get_args(Format))
    if engine is not None:
        require_choice(engine, "engine", list(SERVERS))
    by_name: Format = "gguf" if path.suffix == ".gguf" else "peft"
    reads = by_name if engine is None else SERVERS[engine].reads
    if engine is not None and format not in (None, "merged", reads):
        raise ValueError(f"{engine} reads adapters as '{reads}', not as '{format}': leave out the format")
    if (format or reads) == "gguf":
        require("gguf", "gguf")
    return cast(Format, format or reads)


def gguf_file(path: Path) -> Path:
    """Return the path itself if it names a GGUF file, or the one in that folder."""
    return path if path.suffix == ".gguf" else path / GGUF_FILE


def _check_server(adapter: LoraAdapter, rank: int, server: Server) -> None:
    heads = sorted(adapter.config["modules_to_save"]) if adapter.others else None
    config = {"r": rank, "lora_alpha": rank, "modules_to_save": heads}
    refusal = server.engine.refusal(AdapterLayout(config, dict.fromkeys(adapter.updates, rank)))
    if refusal:
        raise ValueError(f"{server.engine.name} does not accept this adapter ({refusal}): {MERGED}")


def _export_peft(model: PeftModel, adapter: LoraAdapter, folder: Path, dtype: torch.dtype, rank: int) -> Path:
    padded = {name: pad_to_rank(update, rank) for name, update in adapter.updates.items()}
    updates = fill_layers(padded, model.get_base_model())
    tensors = {key: _cast(key, tensor, dtype) for key, tensor in adapter.others.items()}
    for name, update in updates.items():
        tensors |= {key: _cast(name, factor, dtype) for key, factor in factor_tensors([update]).items()}
    config = _plain_config(adapter.config, rank, target_suffixes(updates, model.get_base_model()))
    with replace_export(folder, "peft") as fresh:
        write_adapter(fresh, tensors, config)
    return folder


def _plain_config(config: Mapping[str, Any], rank: int, targets: list[str]) -> dict[str, Any]:
    """Return a config with only the keys that old and new readers know."""
    saved = config["modules_to_save"]
    return {
        "peft_type": "LORA",
        "task_type": config["task_type"],
        "base_model_name_or_path": config["base_model_name_or_path"],
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": config["fan_in_fan_out"],
        "inference_mode": True,
        "modules_to_save": sorted(set(saved)) if saved else None,
        "target_modules": targets,
        **revision(config),
    }


def _export_gguf(model: PeftModel, adapter: LoraAdapter, file: Path, dtype: torch.dtype) -> Path:
    if adapter.others:
        raise ValueError(f"a GGUF adapter holds no head, and this one has {next(iter(adapter.others))}: {MERGED}")
    if shared := shared_weight(model):
        raise ValueError(
            f"{shared[0]} shares its weight with {shared[1]}, and a GGUF model holds it once: serve "
            "this adapter with PEFT"
        )
    for name, update in adapter.updates.items():
        for factor in (update.a, update.b):
            _cast(name, factor, dtype)  # check the range; the file has a scaling of its own before its cast
    write_gguf(file, adapter.updates, model.get_base_model().config, dtype)
    return file


def _cast(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    if not x.is_floating_point():
        return x
    cast_tensor = x.to(dtype)
    _check_finite(name, cast_tensor)
    return cast_tensor


def _check_finite(name: str, x: Tensor) -> None:
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"{name} has values that are not finite in {x.dtype}: export it in bfloat16 or float32")


def _export_merged(model: PeftModel, folder: Path, dtype: torch.dtype | None, tokenizer: Any) -> Path:
    name = model.config.name_or_path
    if tokenizer is None and not name:
        raise ValueError("the base model has no name by which its tokenizer could be loaded: pass tokenizer=")
    tokenizer = load_tokenizer(name) if tokenizer is None else tokenizer
    # PEFT's safe merge puts new tensors in place of those that are shared.
    copied, own = copy_sharing_weights(model), model.dtype
    wider = own if dtype is None else torch.promote_types(own, dtype)
    if wider != own:
        copied.to(wider)  # before the sum, in which a coarse type would lose small updates
    merged = merge(copied)
    if dtype is not None:
        merged.to(dtype)
        for key, tensor in merged.state_dict().items():
            _check_finite(key, tensor)
    save_model(merged, tokenizer, folder)
    return folder


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its generation settings and its tokenizer, completely or not at all."""
    with without_noise(), replace_export(folder, "merged") as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for file in filter(Path.is_file, fresh.rglob("*")):
            shutil.copymode(fresh / MODEL_CONFIG, file)  # safetensors makes its files readable for their owner alone


def check_export_place(path: Path, format: str, inputs: Iterable[str | Path] = (), overwrite: bool = True) -> None:
    """Refuse, before anything is computed, a place where an export would replace anything but an earlier one.

    ``inputs`` are the adapter and the base model, which are never replaced; names on the hub are ignored.
    """
    check_place(path, "" if format == "gguf" else EXPORT_RECORD, overwrite=overwrite, inputs=inputs)
    if format == "gguf":
        _check_gguf(path.resolve())
    else:
        _earlier_export(path.resolve(), format)


@contextlib.contextmanager
def replace_export(path: Path, format: str) -> Iterator[Path]:
    """Open a temporary folder whose files replace those of an earlier export when the block ends."""
    last = ADAPTER_CONFIG if format == "peft" else MODEL_CONFIG
    check_place(path, EXPORT_RECORD)
    with replace_files(path, last=last, first=EXPORT_RECORD, earlier=_earlier_export(path, format)) as fresh:
        yield fresh
        files = sorted(file.relative_to(fresh).as_posix() for file in fresh.rglob("*") if file.is_file())
        (fresh / EXPORT_RECORD).write_text(json.dumps({"format": format, "files": files}, indent=1))


def _earlier_export(folder: Path, format: str) -> list[Path]:
    """Return the files of the export in a folder, which must hold one of the same format, or nothing."""
    if not (folder / EXPORT_RECORD).exists():
        return []
    refuse_other_writer(folder, EXPORT)
    try:
        record = read_json(folder / EXPORT_RECORD)
        written, files = record["format"], [Path(name) for name in record["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{folder / EXPORT_RECORD} is damaged: choose another path or remove it") from error
    if written != format:
        raise FileExistsError(f"{folder} is an export as '{written}', not '{format}': choose another path")
    return files


def _check_gguf(file: Path) -> None:
    if not file.exists():
        return
    import gguf

    try:
        fields = gguf.GGUFReader(file).fields
    except (OSError, ValueError, LookupError) as error:
        raise FileExistsError(f"{file} exists and is not a GGUF file: choose another path or remove it") from error
    if {name for name in fields if not name.startswith("GGUF.")} != _GGUF_FIELDS:
        raise FileExistsError(f"{file} is a GGUF file but not an earlier export: choose another path or remove it")
