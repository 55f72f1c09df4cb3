"""Load a base model with its tokenizer; `tlora.targets` finds what of it can be adapted."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import gguf
import torch
import transformers
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

from tlora.locations import Location, resolve
from tlora.losses import problem_type
from tlora.positions import tell_limit
from tlora.targets import FRESH_MODULES, output_embeddings
from tlora.utils.reproducibility import seeded


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let what is loaded inside share one reader of a GGUF file and one map of its tensors' names.

    transformers reads the file anew for config, tokenizer and weights, and makes the map for every module of the model:
    that is two thirds of the time that SmolLM2-135M takes (``benchmarks/loading.py``).
    """
    shared = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, made in shared.items():
        setattr(gguf, name, cache(made))
    try:
        yield
    finally:
        for name, made in shared.items():
            setattr(gguf, name, made)


@_gguf_read_once()
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
    checkpoint is of one. The weights of a GGUF file are unpacked, so that the model is an ordinary one. The model is in
    eval mode.

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
    place = checked_device(device, kwargs)
    precision = _dtype(dtype, place or _default_device())
    location = resolve(name, kwargs)
    config: PretrainedConfig = _load(AutoConfig, location, name)
    architecture = architecture_of(config, num_labels)
    tokenizer = tell_limit(_padded_tokenizer(location, name), config)
    with seeded(seed):
        options = {"config": config, "dtype": precision, "ignore_mismatched_sizes": True} | kwargs
        model, info = _load(architecture, location, name, output_loading_info=True, **options)
    setattr(model, FRESH_MODULES, _fresh_modules(model, info, name))
    model.name_or_path = model.config.name_or_path = str(name)
    _set_padding(model, tokenizer)
    return model.to(place) if place is not None else model, tokenizer


def load_tokenizer(name: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; see `load_model` for the names.

    Parameters
    ----------
    name : str or path-like
        Name of the model.
    **kwargs
        What says where its files are: ``revision``, ``token``, ``cache_dir``, ...

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        With a padding token: the end token where it had none.

    Raises
    ------
    ModuleNotFoundError, FileNotFoundError, ValueError
        As `load_model`; ValueError also for a model without a tokenizer.
    """
    return _padded_tokenizer(resolve(name, kwargs), name)


def load_config(name: str | os.PathLike[str]) -> PretrainedConfig:
    """The config of a model, and nothing else of it; see `load_model` for the names."""
    return _load(AutoConfig, resolve(name, {}), name)


def writes_text(config: PretrainedConfig) -> bool:
    """Whether `load_model` makes a model of this config that can write; an encoder cannot."""
    return architecture_of(config, None) is not AutoModelForSequenceClassification


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
        with quiet():
            return auto.from_pretrained(location.path, **location.where, **kwargs)
    except (SafetensorError, struct.error, ValueError) as error:
        what = {AutoConfig: "config", AutoTokenizer: "tokenizer"}.get(auto, "model")
        raise ValueError(
            f"cannot load the {what} of {str(name)!r} ({str(error).splitlines()[0]}): its files are missing, "
            f"damaged or unknown to transformers {transformers.__version__}, or an argument does not suit it"
        ) from error


def _default_device() -> torch.device:
    """A card, of several processes on this machine to each its own; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def checked_device(device: str | torch.device | None, kwargs: Mapping[str, Any]) -> torch.device | None:
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
        raise ValueError(f"device={device!r} is no device: use 'cpu', 'cuda' or 'cuda:0'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "leave device out to take what there is"
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
        If it is none.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating-point type: use 'float32', 'bfloat16' or 'float16'")
    return found


def architecture_of(config: PretrainedConfig, num_labels: int | None) -> Any:
    """The auto class to load with; writes a number of labels that was asked for into the config."""
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"num_labels={num_labels} is no number of classes: give 1 (regression) or more")
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


def _fresh_modules(model: PreTrainedModel, info: dict[str, Any], name: str | os.PathLike[str]) -> tuple[str, ...]:
    """Modules that the checkpoint has no weights for: a head, a pooler.

    Anything else is refused: at random in a base that stays frozen, it would never learn anything.
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
def quiet() -> Iterator[None]:
    """Silence the progress bars and notes of `transformers`; what was set before holds again afterwards."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with _quiet_gguf():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Silence the bar of the GGUF reader, which listens to no setting."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
