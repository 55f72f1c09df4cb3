"""Load a saved adapter, alone or beside others, to use it or to continue its training."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils.error import NoMatchingPeftModuleError
from safetensors import SafetensorError
from torch import Tensor, nn

from tlora.adapters.attach import back_on_error
from tlora.adapters.files import (
    ADAPTER_WEIGHTS,
    PREFIX,
    TrainingRecord,
    checked,
    named_by,
    read_training_record,
    refuse_replicated,
    revision,
)
from tlora.adapters.freeze import freeze_a as freeze
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import (
    ADAPTER,
    adapter_layers,
    changes_the_base,
    check_name,
    part_in_the_base,
    taking_off,
    without_noise,
)
from tlora.models.loading import load_model
from tlora.models.offloading import place_stand_ins, refuse_offloaded
from tlora.models.targets import NEWLY_INITIALIZED, check_is_model, refuse_adapted
from tlora.models.weights import check_same_model, fingerprints_before_merging, get_base_model
from tlora.utils.reproducibility import temporary_seed

# What PEFT raises where a value of the config has the wrong type, or names something that does not exist.
_DAMAGE = (
    SafetensorError, TypeError, AttributeError, ArithmeticError, LookupError, NotImplementedError, ImportError, re.error
)  # fmt: skip
# Parts of names that PEFT adds to those of a model, and of what it makes itself.
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)\.")
_BY_PEFT = re.compile(r"\.(lora_|token_adapter\.)")
_CLASSES = re.compile(r"\.(classifier|classification_head|score|logits_proj)\.")
_HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
_OWN_BASE = "pass the base model that it was trained on (a classifier: with as many classes)"


def load(
    folder: str | os.PathLike[str],
    model: Any = None,
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
        The base; by default the one named in the adapter's config, through `load_model`. A ``PeftModel`` gets the
        adapter beside those that it has: ``model.set_adapter(name)`` switches between them.
    name : str
        What the model calls the adapter.
    freeze_a : bool, optional
        Train B alone, or A too. By default as `train` recorded it, in its checkpoints too; other trainers, and exports,
        have no record, and A is trainable then unless this is True.

    Returns
    -------
    peft.PeftModel
        The adapter is active, B and the head are trainable; A, where it is frozen, stays so.

    Raises
    ------
    TypeError
        If it is not a model, such as its name.
    FileNotFoundError
        If there is no adapter in the folder, or on the hub.
    ValueError
        If a file is damaged or not of a LoRA adapter, the model already has an adapter of this name or a merged one, a
        part that the adapter brings whole is offloaded, or the adapter was trained on another model. The model is then
        as it was.
    """
    check_name(name, ())
    if model is not None:
        check_is_model(model)
    folder = adapter_folder(folder)
    config, sizes = checked(folder, "load")
    refuse_replicated(config)
    base = config.get("base_model_name_or_path")
    record = read_training_record(folder)
    if model is None:
        if not base:
            raise ValueError(f"the adapter in {folder} does not name its base model: pass it as model=")
        labels = classes(folder, config, sizes, record)
        with named_by(folder):
            model, _ = load_model(base, num_labels=labels, **revision(config))
    _refuse_taken(model, name, folder, config)
    base_model = get_base_model(model)
    check_name(name, [*(key for key, _ in base_model.named_parameters()), *sizes])
    written = _written(base_model, sizes, config)
    refuse_offloaded(written.items(), "rewritten by this adapter" if changes_the_base(config) else "trained whole")
    _check_task(model, folder, config)
    _check_base(model, folder, record.fingerprints, sizes)
    if freeze_a is None:
        freeze_a = record.frozen_a
    kept = [(p, p.detach().to("cpu", copy=True)) for p in written.values()] if part_in_the_base(config) else []
    with temporary_seed(), _restored_on_error(model, name, kept):  # PEFT draws an A before it reads one
        with place_stand_ins(base_model, {key.partition(".lora_")[0].removeprefix(PREFIX) for key in sizes}):
            adapted = _with_saved(model, folder, name)
        _refuse_lost(adapted, folder, sizes)
        _refuse_drawn(adapted, folder, sizes)
        if freeze_a:
            freeze(adapted)
    return adapted


def classes(
    folder: Path, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], record: TrainingRecord
) -> int | None:
    """Number of classes of a saved head, as recorded, or by the rows of its last matrix; None where there is no head.

    Raises
    ------
    ValueError
        If the base has a head that `load_model` knows nothing of.
    """
    kind = config.get("task_type")
    if kind not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS"):
        raise ValueError(
            f"the adapter in {folder} is for task_type={kind!r}: load its base by a class of transformers and pass it, "
            "tlora.load(folder, model)"
        )
    if record.meta is not None and "num_labels" in record.meta.recipe:
        return record.meta.recipe["num_labels"]
    heads = [key for key, size in sizes.items() if _CLASSES.search(key) and len(size) == 2]
    last = [key for key in heads if ".out_proj." in key] or heads
    return min((sizes[key][0] for key in last), default=None)


def _plain(key: str) -> str:
    """The name that a parameter has in the base, from its name in an adapter's file or in a model with adapters."""
    return _WRAPPED.sub(".", key.removeprefix(PREFIX))


def _written(
    base: nn.Module, sizes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> dict[str, nn.Parameter]:
    """The base's parameters that an adapter brings or writes to, by the names in its file."""
    names = {_plain(key) for key in sizes if not _BY_PEFT.search(key)}
    if changes_the_base(config):
        names |= {f"{_plain(key.partition('.lora_')[0])}.weight" for key in sizes}
    return {_plain(name): parameter for name, parameter in base.named_parameters() if _plain(name) in names}


def _refuse_lost(adapted: PeftModel, folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a model that lacks a module which the adapter brings, such as a head: PEFT drops it silently."""
    base = adapted.get_base_model()
    there = {_plain(name) for name in base.state_dict()}
    for name in (_plain(key) for key in sizes if not _BY_PEFT.search(key)):
        if name not in there:
            raise ValueError(
                f"the adapter in {folder} holds {name}, for which a {type(base).__name__} has no place: {_OWN_BASE}"
            )


def _refuse_drawn(adapted: PeftModel, folder: Path, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a base with parts that `load_model` has randomly initialized and the adapter does not bring."""
    for name in NEWLY_INITIALIZED.get(adapted.get_base_model(), ()):
        if not any(_plain(key).startswith(f"{name}.") for key in sizes):
            raise ValueError(
                f"{name} is randomly initialized: the base has no weights for it, and the adapter in {folder} does "
                f"not hold what it was trained with: {_OWN_BASE}"
            )


def _refuse_taken(model: Any, name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model that cannot take an adapter of this name."""
    if not isinstance(model, PeftModel):
        refuse_adapted(model)
        return
    if name in model.peft_config:
        raise ValueError(
            f"the model already has an adapter called {name!r}: load this one beside it under another name=, "
            "or take all off with tlora.detach(model) first"
        )
    for module, layer in adapter_layers(model).items():
        if layer.merged:
            raise ValueError(f"an adapter is merged into {module}: call model.unmerge_adapter() before loading another")
    if part := part_in_the_base(config):
        raise ValueError(
            f"the adapter in {folder} has {part}, which the others on this model would compute with: load it on a "
            "base of its own"
        )
    for other, its in model.peft_config.items():
        if part := part_in_the_base(its.to_dict()):
            raise ValueError(f"the adapter {other!r} has {part}: load another one on a base of its own")


def _check_task(model: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model for another kind of task than the adapter: PEFT would miss methods, or lose the head."""
    kind, writes = config.get("task_type"), hasattr(model, "prepare_inputs_for_generation")
    if kind == "SEQ_CLS" and writes:
        raise ValueError(
            f"the adapter in {folder} was trained to classify, and a {type(model).__name__} generates text: its head "
            "would be lost; load the base with num_labels=, for a task with labels"
        )
    if kind in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not writes:
        raise ValueError(
            f"the adapter in {folder} was trained to generate text, which a {type(model).__name__} does not: use "
            "it with a task of prompts and completions"
        )
    base = type(get_base_model(model)).__name__
    if kind in _HEADS and base.endswith(tuple(_HEADS.values())) and not base.endswith(_HEADS[kind]):
        raise ValueError(f"the adapter in {folder} is for a base {_HEADS[kind]}, and this is a {base}: {_OWN_BASE}")


def _check_base(
    model: Any, folder: Path, fingerprints: Mapping[str, Tensor] | None, sizes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse another base than the adapter was trained on: PEFT takes any that has modules of these names."""
    if not fingerprints and fingerprints_before_merging(model):
        warnings.warn(
            f"nothing tells which base the adapter in {folder} was trained on, and one was merged into this base: if "
            "that is the same, it counts twice now; load a fresh base",
            stacklevel=3,
        )
    if fingerprints is not None:
        keys = [(key.replace(".lora_A.", ".lora_B."), key) for key in sizes if key.endswith(".lora_A.weight")]
        shapes = {a.removeprefix(PREFIX).partition(".lora_A")[0]: (sizes[b][0], sizes[a][1]) for b, a in keys}
        shapes = {name: shapes[name] for name in (*fingerprints, *shapes) if name in shapes}  # in the model's order
        check_same_model(model, fingerprints, shapes, what=f"the adapter in {folder} is", way_out=_OWN_BASE)


@contextlib.contextmanager
def _restored_on_error(model: Any, name: str, kept: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Leave the model with the adapters and the parameters that it had when the block fails."""
    if not isinstance(model, PeftModel):
        try:
            with back_on_error(model):
                yield
        except BaseException:
            for parameter, values in kept:
                parameter.data.copy_(values)
            raise
        return
    take_off = taking_off(model, name)
    try:
        yield
    except BaseException:
        take_off()
        raise


def _with_saved(model: Any, folder: Path, name: str) -> PeftModel:
    """The model with the saved adapter; refuse missing parts, which PEFT would leave randomly initialized."""
    options: dict[str, Any] = {"adapter_name": name, "is_trainable": True}
    try:
        with without_noise():
            warnings.filterwarnings("error", "Found missing adapter keys")
            warnings.filterwarnings("ignore", "Adapter name '.*' should not be contained in the prefix")
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, str(folder), **options)
            missing = {*model.load_adapter(str(folder), **options).missing_keys}  # of others too, if names are alike
            if missing := missing & _keys(model, name):
                raise KeyError(min(missing))
            model.set_adapter(name)
            return model
    except (UserWarning, KeyError) as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS} is incomplete ({str(error)[:200]}): copy it again") from error
    except _DAMAGE as error:
        raise ValueError(f"the adapter in {folder} is damaged ({str(error)[:200]}): copy it again") from error
    except (NoMatchingPeftModuleError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
            raise
        why = f"{type(model).__name__} ({str(error).splitlines()[-1].strip()[:200]})"
        raise ValueError(f"the adapter in {folder} does not fit this {why}: {_OWN_BASE}") from error


def _keys(model: PeftModel, name: str) -> set[str]:
    """What the adapter's own tensors are called in the model's state dict."""
    keys: Any = {key: key for key in model.state_dict()}
    return {*get_peft_model_state_dict(model, keys, name, save_embedding_layers=False).values()}
