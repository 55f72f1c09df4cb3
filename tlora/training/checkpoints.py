"""Checkpoints of a training: mark them once they are complete, and find them to resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from tlora.adapters.files import (
    ARGUMENTS,
    BASE,
    FROZEN_A,
    SAMPLES,
    SECONDS,
    checkpoint_record,
    read_config,
    read_shapes,
)
from tlora.adapters.lora_layers import ADAPTER, adapter_tensors, lora_updates
from tlora.adapters.peft_config import module_scalings
from tlora.models.targets import shape
from tlora.models.weights import base_fingerprints, base_modules, check_same_model
from tlora.utils.files import flush, read_json, replace_file

_NEW_FOLDER = "name another folder, or remove this one"
_SAMPLED_ROWS = 256
_FIXED = (
    "learning_rate", "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor",
    "train_sampling_strategy", "dataloader_drop_last",
)  # fmt: skip
"""Arguments that a resumed training must share with its checkpoint."""
_TORCH_SAVE = ("inline_container", "iostream error", "cannot be opened")
"""What a RuntimeError of torch.save says if a file cannot be written."""


class MarkComplete(TrainerCallback):
    """Write a record into each checkpoint after the Trainer, and the callbacks before this one, have written theirs."""

    def __init__(self, record: Mapping[str, Any], seconds: float = 0.0) -> None:
        self.record = record
        self.seconds = seconds  # of earlier processes
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Flush the checkpoint of this step to disk, and mark it."""
        PartialState().wait_for_everyone()  # each process writes files of its own
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            with warn_if_not_written(folder):
                flush(folder)
                seconds = self.seconds + time.perf_counter() - self._began
                with replace_file(folder / ARGUMENTS) as file:
                    file.write_text(json.dumps({**self.record, SECONDS: seconds}))


def check_same_training(
    checkpoint: str | None,
    args: TrainingArguments,
    rows: Any,
    model: PeftModel,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the record for `MarkComplete`, after comparing it with that of the checkpoint to resume from, if any.

    The Trainer reads a part of it from the checkpoint, such as the learning rate: another value would be recorded but
    not used. The number of devices that share a step may differ. ``options`` are those that are not the Trainer's.

    Raises
    ------
    ValueError
        If an argument, the training samples or the base differ.
    """
    arguments = args.to_dict()
    arguments["optim"] = arguments["optim"].removesuffix("_fused")  # the same optimizer
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = {name: arguments[name] for name in _FIXED if name in arguments} | {
        "samples a step": step,
        "training samples": len(rows),
        **options,
    }
    updates = lora_updates(model).values()
    now[FROZEN_A] = bool(updates) and not any(update.a.requires_grad for update in updates)
    prints = base_fingerprints(model)
    record = now | {SAMPLES: _digest(rows), BASE: {name: print_.tolist() for name, print_ in prints.items()}}
    before = None if checkpoint is None else checkpoint_record(Path(checkpoint))
    if before is None:
        return record
    for name, value in now.items():
        if before.get(name, value) != value:
            raise ValueError(
                f"{checkpoint} was made with {name}={before[name]}, not {value}: pass the same to resume, or start a "
                f"new training: {_NEW_FOLDER}"
            )
    if before[SAMPLES] != record[SAMPLES]:
        raise ValueError(
            f"{checkpoint} was made with other training samples: pass those, or start a new training: {_NEW_FOLDER}"
        )
    done = read_json(Path(str(checkpoint), TRAINER_STATE_NAME))["global_step"]
    if done > args.max_steps > 0:
        raise ValueError(
            f"{checkpoint} is after {done} steps, and max_steps={args.max_steps}: pass at least {done}, or an earlier "
            "checkpoint"
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


def seconds_before(checkpoint: str) -> float:
    """Return the time that training took until a checkpoint was written."""
    return float((checkpoint_record(Path(checkpoint)) or {}).get(SECONDS, 0.0))


def _digest(rows: Any) -> str:
    """Return a digest of numbers and texts in evenly spaced rows, the same for every format of the rows."""
    digest = hashlib.sha256()
    for index in np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).round():
        row = json.dumps(rows[int(index)], skipkeys=True, sort_keys=True, default=_plain)
        digest.update(row.encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def is_complete(checkpoint: Path) -> bool:
    """Whether `train` has written all of a checkpoint."""
    return checkpoint_record(checkpoint) is not None


def checkpoint_to_resume(
    resume: bool | str | os.PathLike[str], output_dir: str | os.PathLike[str] | None, model: PeftModel
) -> str | None:
    """Return the checkpoint to continue from, if any.

    Raises
    ------
    ValueError
        If the checkpoint is of another adapter or holds no state of an optimizer, or if a new training would mix its
        checkpoints with those of an earlier one.
    FileNotFoundError
        If there is no complete checkpoint.
    """
    earlier = [] if output_dir is None else _numbered(Path(output_dir))
    complete = list(filter(is_complete, earlier))
    if resume is False and earlier:  # the Trainer counts all of them when it removes the oldest ones
        hint = f": pass resume={str(complete[-1])!r} to continue it" if complete else ", which is incomplete: remove it"
        raise ValueError(
            f"{output_dir} holds {earlier[-1].name} of an earlier training{hint}, or start a new training: "
            f"{_NEW_FOLDER}"
        )
    if resume is False:
        return None
    if resume is True and output_dir is None:
        raise ValueError("resume=True looks for checkpoints in output_dir: pass output_dir=, or the checkpoint's path")
    folder = next(reversed(complete), None) if resume is True else Path(resume)
    if folder is None or not is_complete(folder):
        source = output_dir if resume is True else folder
        raise FileNotFoundError(
            f"no complete checkpoint in {source}: to start a new training, leave resume= out and {_NEW_FOLDER}"
        )
    if not any(folder.glob("optimizer*")) and not any(folder.glob("global_step*")):
        raise ValueError(
            f"{folder} holds the adapter alone (save_only_model=True), without a state of an optimizer: load it with "
            "tlora.load_adapter() and train on from there"
        )
    _check_adapter(folder, model)
    return str(folder)


def active_adapter_folder(checkpoint: Path, model: PeftModel) -> Path:
    """Return the folder in a checkpoint where PEFT saves the active adapter."""
    return checkpoint if model.active_adapter == ADAPTER else checkpoint / model.active_adapter


def _numbered(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder in the order of their steps."""
    numbered = (path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit())
    return sorted(numbered, key=lambda path: int(path.name[11:]))


def _check_adapter(checkpoint: Path, model: PeftModel) -> None:
    """Refuse a checkpoint of another adapter than that of the model."""
    folder = active_adapter_folder(checkpoint, model)
    updates = lora_updates(model)
    try:
        saved, config = read_shapes(folder), read_config(folder, "train") if updates else {}
    except ValueError as error:
        raise ValueError(f"{error}, or resume from an earlier checkpoint") from error
    here = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(model).items()}
    odd = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if odd:
        raise ValueError(
            f"{checkpoint} is of another adapter: {odd[0]} has shape {saved.get(odd[0])} there and {here.get(odd[0])} "
            "in the model; attach the same allocation, or leave resume= out"
        )
    scalings = module_scalings(config, updates)
    if not all(math.isclose(scalings[name], update.scaling, rel_tol=1e-3) for name, update in updates.items()):
        raise ValueError(
            f"{checkpoint} is of another adapter, of the same shapes with other scalings: attach the same allocation "
            "or leave resume= out"
        )


@contextlib.contextmanager
def warn_if_not_written(checkpoint: Path) -> Iterator[None]:
    """Warn, remove what was written and continue if a checkpoint cannot be written: earlier checkpoints stay."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_SAVE):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        warnings.warn(
            f"{checkpoint} could not be written ({reason}): training continues, and earlier checkpoints stay; free "
            "some space before it ends",
            stacklevel=1,  # in this package, so that the command line shows it
        )
