"""Load a saved adapter, alone or in addition to others, to use it or to continue its training."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.error import NoMatchingPeftModuleError
from safetensors import SafetensorError
from torch import Tensor, nn

from tlora.adapters.attach import restored_on_error
from tlora.adapters.files import (
    PREFIX,
    TrainingRecord,
    read_training_record,
    revision,
    target_shapes,
    validate_adapter,
)
from tlora.adapters.freeze import freeze_a as freeze
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import ADAPTER, adapter_layers, removal
from tlora.adapters.peft_config import rewrites_base, trace_in_base
from tlora.models.loading import load_model, resolve
from tlora.models.offloading import place_stand_ins, refuse_offloaded
from tlora.models.record import record_of
from tlora.models.targets import Model, refuse_adapted
from tlora.models.weights import check_same_model, get_base_model
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tlora.utils.logs import without_noise
from tlora.utils.reproducibility import temporary_seed
from tlora.utils.validation import check_arguments

# What PEFT raises for a config with a wrong value, and for an adapter of another model.
_MISFIT = (
    SafetensorError, NoMatchingPeftModuleError, TypeError, AttributeError, ArithmeticError, LookupError, ImportError,
    RuntimeError, re.error,
)  # fmt: skip
# Parts that PEFT adds to the names of a model, and parts of the names of its own parameters.
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)\.")
_OF_LORA = re.compile(r"\.(lora_|token_adapter\.)")
_CLASSES = re.compile(r"\.(classifier|classification_head|score|logits_proj)\.")
_OWN_BASE = "pass the base model that it was trained on (a classifier: with as many classes)"


def load_adapter(
    folder: str | os.PathLike[str],
    model: Model | None = None,
    *,
    name: str = ADAPTER,
    freeze_a: bool | None = None,
) -> PeftModel:
    """Load a saved adapter to use it or to continue its training.

    Parameters
    ----------
    folder : path-like or str
        What `TrainingRun.save` wrote, or any PEFT LoRA adapter: its folder, or its name on the hub, ``owner/name`` or
        ``owner/name@revision``.
    model : transformers.PreTrainedModel or peft.PeftModel, optional
        The base; by default the one named in the adapter's config, loaded by `load_model`. A ``PeftModel`` gets the
        adapter in addition to those it has: ``model.set_adapter(name)`` switches between them.
    name : str
        Name of the adapter on the model.
    freeze_a : bool, optional
        Train ``B`` alone, or ``A`` too. By default as `train` recorded it, in a run or a checkpoint. Other trainers
        and exports keep no record; ``A`` is then trainable unless this is True.

    Returns
    -------
    peft.PeftModel
        The adapter is active, ``B`` and the head are trainable. A frozen ``A`` stays frozen.

    Raises
    ------
    FileNotFoundError
        If there is no adapter in the folder, or on the hub.
    ValueError
        If a file is damaged or not of a LoRA adapter, the model already has an adapter of this name, or the adapter
        was trained on another model. The model is left as it was.

    Examples
    --------
    >>> base, _ = tlora.load_model("base")
    >>> adapted = tlora.load_adapter("adapter", base)
    >>> adapted.active_adapter
    'default'
    """
    check_arguments(load_adapter, locals())
    folder = adapter_folder(folder)
    config, sizes = validate_adapter(folder, "load_adapter")
    record = read_training_record(folder)
    if model is None:
        base, where = named_base(folder, config, "model=")
        model, _ = load_model(base, num_labels=saved_classes(folder, config, sizes, record), **where)
    _check_free(model, name, config)
    _check_base(model, folder, record.fingerprints, target_shapes(sizes, config))
    if freeze_a is None:
        freeze_a = record.frozen_a
    names = {key.partition(".lora_")[0].removeprefix(PREFIX) for key in sizes}
    if rewrites_base(config):  # a stand-in would be rewritten in place of the weight, without a message
        weights = get_base_model(model).named_parameters()
        refuse_offloaded(((n, p) for n, p in weights if n.rpartition(".")[0] in names), "rewritten by this adapter")
    with temporary_seed(), _restored(model, name):  # PEFT initializes A at random before it reads one
        with place_stand_ins(get_base_model(model), names):
            adapted = _add_saved(model, folder, name)
        base_model = adapted.get_base_model()
        refuse_offloaded((n, p) for n, p in base_model.named_parameters() if p.requires_grad)
        _check_whole_modules(base_model, folder, sizes)
        if freeze_a:
            freeze(adapted)
    return adapted


def named_base(folder: Path, config: Mapping[str, Any], way_out: str) -> tuple[str, dict[str, Any]]:
    """Return the base model that the config of an adapter names, and its revision if there is one, once it is found.

    ``way_out`` is where another base can be given, for the message.
    """
    name = config.get("base_model_name_or_path")
    if not name:
        raise ValueError(f"the adapter in {folder} does not say what its base model is: pass {way_out}")
    try:
        resolve(name, revision(config))
    except (OSError, ValueError) as error:
        error.add_note(f"(named by {folder / ADAPTER_CONFIG}: pass {way_out} if it has moved)")
        raise
    return name, revision(config)


def saved_classes(
    folder: Path, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], record: TrainingRecord
) -> int | None:
    """Return the number of classes of a saved head, as recorded or by its last matrix; None without head."""
    kind = config.get("task_type")
    if kind not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS"):
        raise ValueError(
            f"the adapter in {folder} is for task_type={kind!r}: load its base with transformers and pass it, "
            "tlora.load_adapter(folder, model)"
        )
    if record.meta is not None and "num_labels" in record.meta.recipe:
        return record.meta.recipe["num_labels"]
    heads = [key for key, size in sizes.items() if _CLASSES.search(key) and len(size) == 2]
    last = [key for key in heads if ".out_proj." in key] or heads
    return min((sizes[key][0] for key in last), default=None)


def _check_free(model: Any, name: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that cannot take another adapter of this name."""
    if not isinstance(model, PeftModel):
        refuse_adapted(model)
        return
    if name in model.peft_config:
        raise ValueError(
            f"the model already has an adapter called {name!r}: load this one under another name=, or take all off "
            "with tlora.detach(model) first"
        )
    if any(layer.merged for layer in adapter_layers(model).values()):
        raise ValueError("an adapter is merged into the model: call model.unmerge_adapter() before loading another")
    for adapter_name, its_config in {name: config, **{n: c.to_dict() for n, c in model.peft_config.items()}}.items():
        if trace := trace_in_base(its_config):
            raise ValueError(
                f"the adapter {adapter_name!r} has {trace}, which all others would share: load it on its own base"
            )


def _base_name(key: str) -> str:
    """Return the name of a parameter in the base, given its name in an adapter's file or in an adapted model."""
    return _WRAPPED.sub(".", key.removeprefix(PREFIX))


def _check_whole_modules(base: Any, folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse to lose a head that the adapter holds (PEFT drops it silently), or to use one that nobody trained."""
    present = {_base_name(name) for name in base.state_dict()}
    saved = [_base_name(key) for key in sizes if not _OF_LORA.search(key)]
    for name in saved:
        if name not in present:
            raise ValueError(f"the adapter in {folder} holds {name}, and a {type(base).__name__} has none: {_OWN_BASE}")
    for name in record_of(base).newly_initialized or ():
        if not any(key.startswith(f"{name}.") for key in saved):
            raise ValueError(
                f"{name} is randomly initialized: the base has no weights for it, and the adapter in {folder} does "
                f"not hold what it was trained with: {_OWN_BASE}"
            )


def _check_base(
    model: Any, folder: Path, fingerprints: Mapping[str, Tensor] | None, shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Refuse another base than the adapter was trained on: PEFT takes any that has modules of these names."""
    if fingerprints is not None:
        shapes = {name: shapes[name] for name in (*fingerprints, *shapes) if name in shapes}  # in the model's order
        check_same_model(model, fingerprints, shapes, what=f"the adapter in {folder} is", way_out=_OWN_BASE)


@contextlib.contextmanager
def _restored(model: nn.Module, name: str) -> Iterator[None]:
    """Leave the model with the adapters that it had if the block fails."""
    if not isinstance(model, PeftModel):
        with restored_on_error(model):
            yield
        return
    remove = removal(model, name)
    try:
        yield
    except BaseException:
        remove()
        raise


def _add_saved(model: Any, folder: Path, name: str) -> PeftModel:
    """Add the saved adapter; refuse missing parts, which PEFT would leave randomly initialized."""
    options: dict[str, Any] = {"adapter_name": name, "is_trainable": True}
    try:
        with without_noise():
            warnings.filterwarnings("error", "Found missing adapter keys")
            warnings.filterwarnings("ignore", "Adapter name '.*' should not be contained in the prefix")
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, str(folder), **options)
            missing = model.load_adapter(str(folder), **options).missing_keys
            if own := [key for key in missing if f".{name}." in f"{key}."]:  # PEFT lists keys of similar names, too
                raise KeyError(min(own))
            model.set_adapter(name)
            return model
    except (UserWarning, KeyError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is incomplete ({str(error)[:200]}): copy it again") from error
    except _MISFIT as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ValueError(
            f"the adapter in {folder} is damaged or does not fit this {type(model).__name__} "
            f"({why[0].strip()[:200]}): copy it again, or {_OWN_BASE}"
        ) from error
