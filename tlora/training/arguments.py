"""Arguments of training, checked where they enter."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from tlora.utils.distributed import is_cpu_run
from tlora.utils.validation import positive, positive_int

_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
_OUR_NAMES = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "resume_from_checkpoint": "resume",
    "disable_tqdm": "progress",
}
_NO_EFFECT = {"do_train", "do_eval", "do_predict", "local_rank"}
# Called activation_checkpointing in newer versions of transformers, which warn about the old name.
_CHECKPOINTING = "activation" if "activation_checkpointing" in _FIELDS else "gradient"
_DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.0,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "eval_steps": 0.25,
    "save_steps": 0.25,
    "save_total_limit": 2,
    "report_to": "none",
    "remove_unused_columns": False,
    "label_names": ["labels"],
}


def check_numbers(learning_rate: float, epochs: float, batch_size: int, evaluation_limit: int | None) -> None:
    """Refuse numbers that cannot be trained with.

    Raises
    ------
    TypeError, ValueError
        Naming the argument and what it may be.
    """
    positive("learning_rate", learning_rate)
    positive("epochs", epochs)
    positive_int(batch_size, "batch_size")
    if evaluation_limit is not None and (not isinstance(evaluation_limit, Integral) or evaluation_limit < 0):
        raise ValueError(f"evaluation_limit must be a number of samples, 0 for none, or None, got {evaluation_limit!r}")


def check_card(device: torch.device | None) -> None:
    """Refuse a GPU that the Trainer would not train on, and move the model away from.

    Raises
    ------
    ValueError
        If it is not the first that this process sees, or of several processes its own.
    """
    if device is None or device.type != "cuda" or device.index is None:
        return
    launched = int(os.environ.get("LOCAL_RANK", "-1"))
    taken = max(0, launched)
    if device.index != taken and launched >= 0:
        raise ValueError(f"device {str(device)!r}: this process trains on cuda:{taken}: leave the device out")
    if device.index != taken:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(device.index + 1)))
        card = seen.split(",")[device.index]
        raise ValueError(
            f"device {str(device)!r}: the Trainer of transformers takes cuda:{taken} here; to train on this GPU, "
            f"start Python with CUDA_VISIBLE_DEVICES={card} in its environment and leave the device out"
        )


def check_report(report_to: Any) -> None:
    """Refuse, before anything is computed, to log where there is nothing installed that does.

    Raises
    ------
    ValueError
        If it is unknown or not installed.
    """
    installed = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in ("none", "all", *installed):
            there = ", ".join(["none", *installed])
            raise ValueError(f"report_to={name!r} is unknown, or not installed: install it, or choose {there}")


def training_arguments(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], validates: bool, saves: bool, model: PeftModel
) -> TrainingArguments:
    """The Trainer's arguments: our defaults, then what was passed on, then what `train` names itself.

    Parameters
    ----------
    ours : mapping
        Under the Trainer's names.
    theirs : mapping
        What the caller passed on.
    validates, saves : bool
        Whether there are validation samples, and a folder for checkpoints.
    model : peft.PeftModel
        One on the CPU is trained there, though there be a GPU; one on a GPU on that GPU alone, though there be more.

    Raises
    ------
    TypeError
        If an argument is unknown, or goes by another name in `train`.
    ValueError
        If a value is refused by the Trainer, or asks for validation or checkpoints where there can be none, or the
        model is on a GPU that the Trainer does not take.
    """
    if not getattr(model, "hf_device_map", None):  # else it stays where it is
        check_card(model.device)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("the base is offloaded, and the Trainer would move it: load it with device_map=")
    _check_names(theirs)
    check_report(theirs.get("report_to"))
    _check_possible(theirs, validates, saves)
    chosen = _DEFAULTS | {
        "eval_strategy": "steps" if validates else "no",
        "save_strategy": "steps" if saves else "no",
        "use_cpu": is_cpu_run() or model.device.type == "cpu",
        "per_device_eval_batch_size": ours["per_device_train_batch_size"],
        # Anywhere else torch warns that it can pin nothing.
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    found = TrainingArguments(**(chosen | _checkpointing(theirs) | dict(ours)))
    # With several GPUs in sight and no launcher, a batch of this size would be given to each of them.
    found._n_gpu = min(found.n_gpu, 1)
    return found


def _check_names(theirs: Mapping[str, Any]) -> None:
    for name in theirs:
        if name in _OUR_NAMES:
            raise TypeError(f"train() takes {_OUR_NAMES[name]}= in place of {name}=")
        if name not in _FIELDS or name in _NO_EFFECT:
            close = difflib.get_close_matches(name, (_FIELDS - _NO_EFFECT) | set(_OUR_NAMES.values()))
            hint = f"did you mean {' or '.join(close)}?" if close else "see transformers.TrainingArguments"
            raise TypeError(f"train() has no argument {name!r}: {hint}")


def _check_possible(theirs: Mapping[str, Any], validates: bool, saves: bool) -> None:
    def asked(name: str) -> bool:
        return str(getattr(theirs.get(name, "no"), "value", theirs.get(name, "no"))) != "no"

    for name in ("max_steps", "gradient_accumulation_steps"):
        if (count := theirs.get(name)) is not None and count < 1 and (name, count) != ("max_steps", -1):
            raise ValueError(f"{name}={count!r}: use a whole number of at least 1, or leave it out")
    if theirs.get("auto_find_batch_size"):
        raise ValueError(
            "auto_find_batch_size=True begins again with what was trained before memory ran out, and the record is "
            "then wrong: pass a smaller batch_size, and gradient_accumulation_steps for as many samples a step"
        )
    if theirs.get("eval_strategy") and asked("eval_strategy") and not validates:
        raise ValueError(
            f"eval_strategy={theirs['eval_strategy']!r} needs validation samples, and there are none: "
            "pass a task with a validation split and an evaluation_limit other than 0"
        )
    if (asked("save_strategy") or theirs.get("load_best_model_at_end")) and not saves:
        raise ValueError("checkpoints were asked for without a place: pass output_dir=")
    if (best := theirs.get("metric_for_best_model")) not in (None, "loss", "eval_loss"):
        raise ValueError(
            f"metric_for_best_model={best!r}: during training the loss alone is evaluated, so leave it out; for the "
            "best by another metric keep all checkpoints (save_total_limit=None) and evaluate each"
        )


def _checkpointing(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Gradient checkpointing by the name of this version, and not of the kind that frozen inputs defeat."""
    renamed = {
        name.replace("gradient_checkpointing", f"{_CHECKPOINTING}_checkpointing"): v for name, v in theirs.items()
    }
    if renamed.get(f"{_CHECKPOINTING}_checkpointing"):
        key = f"{_CHECKPOINTING}_checkpointing_kwargs"
        renamed[key] = {"use_reentrant": False} | (renamed.get(key) or {})
    return renamed
