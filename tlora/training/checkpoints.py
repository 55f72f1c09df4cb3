"""Checkpoints of a training: marked once they are whole, and found again when it is resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tlora.adapters.files import ARGUMENTS, BASE, FROZEN_A, SAMPLES, checkpoint_record, saved_shapes
from tlora.adapters.lora_layers import ADAPTER, adapter_tensors, lora_modules
from tlora.models.targets import shape
from tlora.models.weights import base_fingerprints, base_modules, check_same_model
from tlora.utils.files import flush, read_json, replace_file

LAST = "trainer_state.json"
"""What the Trainer writes last."""


ANEW = "name another folder, or remove this one"

_LOOKED_AT = 256
HELD = (
    "learning_rate", "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor",
    "train_sampling_strategy", "dataloader_drop_last",
)  # fmt: skip
# What a RuntimeError of torch.save says where a file cannot be written; others are none of the disk's.
_TORCH_SAVE = ("inline_container", "iostream error", "cannot be opened")


class MarkWhole(TrainerCallback):
    """Writes a record into each checkpoint once the Trainer, and the callbacks before this one, have written theirs.

    Parameters
    ----------
    record : dict
        From `same_training`.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the checkpoint of this step on disk, and mark it."""
        PartialState().wait_for_everyone()  # each process writes files of its own
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            with dispensable(folder):
                flush(folder)
                with replace_file(folder / ARGUMENTS) as file:
                    file.write_text(json.dumps(self.record))


def same_training(
    checkpoint: str | None,
    args: TrainingArguments,
    rows: Any,
    model: PeftModel,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """What a resumed training has to have in common with that of its checkpoint; refuses to go on in another way.

    Part of it comes out of the checkpoint, such as the learning rate: another would be recorded, and not used. With
    others the second part of the training would not be that of the first. How many devices share a step is left open.
    ``more`` is what there is beside the Trainer's arguments.

    Returns
    -------
    dict
        By name, for `MarkWhole`.

    Raises
    ------
    ValueError
        If an argument, the training samples or the base differ; checkpoints without a record are taken as they are.
    """
    given = args.to_dict()
    given["optim"] = given["optim"].removesuffix("_fused")  # the same, computed in one go
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = {name: given[name] for name in HELD if name in given} | {
        "samples a step": step,
        "training samples": len(rows),
        **more,
    }
    modules = lora_modules(model).values()
    now[FROZEN_A] = bool(modules) and not any(module.a.requires_grad for module in modules)
    prints = base_fingerprints(model)
    record = now | {SAMPLES: _digest(rows), BASE: {name: print_.tolist() for name, print_ in prints.items()}}
    before = None if checkpoint is None else checkpoint_record(Path(checkpoint))
    if before is None:
        return record
    for name, value in now.items():
        if before.get(name, value) != value:
            raise ValueError(
                f"{checkpoint} was made with {name}={before[name]}, and {value} is asked for: pass the same to go on, "
                f"or start a new training: {ANEW}"
            )
    if before[SAMPLES] != record[SAMPLES]:
        raise ValueError(
            f"{checkpoint} was made with other training samples: pass those, or start a new training: {ANEW}"
        )
    earlier = {name: torch.tensor(value) for name, value in before[BASE].items() if name in prints}
    layers = base_modules(model)
    check_same_model(
        model,
        earlier,
        {name: shape(layers[name]) for name in earlier},
        what=f"{checkpoint} is",
        way_out="load the base that it was trained on, or start a new training",
    )
    return record


def _digest(rows: Any) -> str:
    """Of numbers and texts in some rows at even distances: other data have another, whatever form they come in."""
    found = hashlib.sha256()
    for place in np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).round():
        row = rows[int(place)]
        row = dict(row) if isinstance(row, Mapping) else row
        found.update(json.dumps(row, skipkeys=True, sort_keys=True, default=_plain).encode())
    return found.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def is_whole(checkpoint: Path) -> bool:
    """Whether `train` has written all of it."""
    return checkpoint_record(checkpoint) is not None


def checkpoint_to_resume(
    resume: bool | str | os.PathLike[str], output_dir: str | os.PathLike[str] | None, model: PeftModel
) -> str | None:
    """The checkpoint that training goes on from, if any.

    Raises
    ------
    ValueError
        If there is no folder to look in, the checkpoint is of another adapter or holds no state of an optimizer; or
        a new training would leave its checkpoints among those of an earlier one.
    FileNotFoundError
        If there is no whole checkpoint.
    """
    if resume is False:
        _refuse_earlier(output_dir)
        return None
    if resume is True and output_dir is None:
        raise ValueError("resume=True looks for checkpoints in output_dir: pass output_dir=, or the checkpoint's path")
    folder = _last_checkpoint(Path(str(output_dir))) if resume is True else Path(resume)
    if folder is None or not _is_usable(folder, model):
        place = output_dir if resume is True else folder
        raise FileNotFoundError(
            f"no whole checkpoint in {place}: to start a new training, leave resume= out and {ANEW}"
        )
    if not any(folder.glob("optimizer*")) and not any(folder.glob("global_step*")):
        raise ValueError(
            f"{folder} holds the adapter alone (save_only_model=True), and no state of an optimizer to go on with: "
            "load it with tlora.load() and train on from there"
        )
    _check_fits(folder, model)
    return str(folder)


def adapter_folder(checkpoint: Path, model: PeftModel) -> Path:
    """Where in a checkpoint PEFT has put the active adapter."""
    return checkpoint if model.active_adapter == ADAPTER else checkpoint / model.active_adapter


def _refuse_earlier(output_dir: str | os.PathLike[str] | None) -> None:
    """Refuse a folder with checkpoints: the Trainer counts all of them when it removes the oldest ones."""
    there = [] if output_dir is None else _numbered(Path(output_dir))
    if there:
        whole = next((path for path in reversed(there) if is_whole(path) or (path / LAST).is_file()), None)
        on = f": pass resume={str(whole)!r} to go on with that" if whole else ", which was not finished: take it away"
        raise ValueError(
            f"{output_dir} holds {there[-1].name} of an earlier training{on}, or start a new training: {ANEW}"
        )


def _last_checkpoint(folder: Path) -> Path | None:
    return next((path for path in reversed(_numbered(folder)) if is_whole(path)), None)


def _numbered(folder: Path) -> list[Path]:
    """Checkpoints by their steps."""
    numbered = (path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit())
    return sorted(numbered, key=lambda path: int(path.name[11:]))


def _is_usable(checkpoint: Path, model: PeftModel) -> bool:
    """Whole; or made by a Trainer that marks nothing, and there as far as one can see."""
    if (checkpoint / ARGUMENTS).exists():
        return is_whole(checkpoint)
    try:
        read_json(checkpoint / LAST)
    except (OSError, ValueError):
        return False
    return (adapter_folder(checkpoint, model) / SAFETENSORS_WEIGHTS_NAME).is_file()


def _check_fits(checkpoint: Path, model: PeftModel) -> None:
    folder = adapter_folder(checkpoint, model)
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ValueError(
            f"{checkpoint} holds no adapter called {model.active_adapter!r}, which is the active one: "
            "model.set_adapter(name) picks another"
        )
    try:
        saved = saved_shapes(folder)
    except ValueError as error:
        raise ValueError(f"{error}, or resume from an earlier checkpoint") from error
    here = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
    odd = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if odd:
        raise ValueError(
            f"{checkpoint} is of another adapter: {odd[0]} has shape {saved.get(odd[0])} there and "
            f"{here.get(odd[0])} in the model; attach the same allocation, or leave resume= out"
        )
    before, now = read_json(folder / CONFIG_NAME), model.peft_config[model.active_adapter].to_dict()
    if not _scaled_alike(before, now):
        raise ValueError(
            f"{checkpoint} is of another adapter, of the same shapes with other scales: attach the same allocation, or "
            "leave resume= out"
        )


def _scaled_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two PEFT configs give their modules the same scales, to what another machine rounds otherwise."""
    patterns = [{"": config.get("lora_alpha", 1), **(config.get("alpha_pattern") or {})} for config in (one, other)]
    return (
        one.get("use_rslora") == other.get("use_rslora")
        and patterns[0].keys() == patterns[1].keys()
        and all(math.isclose(alpha, patterns[1][name], rel_tol=1e-3) for name, alpha in patterns[0].items())
    )


@contextlib.contextmanager
def dispensable(checkpoint: Path) -> Iterator[None]:
    """Go on without a checkpoint that cannot be written: what is in memory is worth more.

    Warns
    -----
    UserWarning
        If it cannot; what there is of it is removed, and earlier checkpoints stay.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_SAVE):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        warnings.warn(
            f"{checkpoint} could not be written ({reason}): training goes on, and earlier checkpoints stay; free some "
            "space before it ends",
            stacklevel=1,  # of this package, so that the command line tells it
        )
