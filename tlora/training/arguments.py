"""Arguments of training for the Trainer of transformers."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from tlora.utils.distributed import is_cpu_run

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


def check_gpu(device: torch.device | None) -> None:
    """Refuse a GPU to which the Trainer would not keep the model: it uses the first, or that of its process."""
    if device is None or device.type != "cuda" or device.index is None:
        return
    launched = int(os.environ.get("LOCAL_RANK", "-1"))
    rank = max(0, launched)
    if device.index != rank and launched >= 0:
        raise ValueError(f"device {str(device)!r}: this process trains on cuda:{rank}: leave the device out")
    if device.index != rank:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(device.index + 1)))
        raise ValueError(
            f"device {str(device)!r}: the Trainer of transformers uses cuda:{rank}: to train on this GPU, start Python "
            f"with CUDA_VISIBLE_DEVICES={visible.split(',')[device.index]} and leave the device out"
        )


def check_report(report_to: Any) -> None:
    """Refuse, before anything is computed, to log to a service that is unknown or not installed."""
    installed = get_available_reporting_integrations()
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in ("none", "all", *installed):
            choices = ", ".join(["none", *installed])
            raise ValueError(f"report_to={name!r} is unknown, or not installed: install it, or choose {choices}")


def training_arguments(
    own: Mapping[str, Any], arguments: Mapping[str, Any], validates: bool, saves: bool, model: PeftModel
) -> TrainingArguments:
    """Return the Trainer's arguments: our defaults, then those of the caller, then those that `train` names itself.

    ``validates`` and ``saves`` say whether there are validation samples, and a folder for checkpoints.
    """
    if not getattr(model, "hf_device_map", None):  # else it stays where it is
        check_gpu(model.device)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("the base is offloaded, and the Trainer would move it: load it with device_map=")
    check_names(arguments)
    check_report(arguments.get("report_to"))
    _check_options(arguments, saves)
    defaults = _DEFAULTS | {
        "eval_strategy": "steps" if validates else "no",
        "save_strategy": "steps" if saves else "no",
        "use_cpu": is_cpu_run() or model.device.type == "cpu",
        "per_device_eval_batch_size": own["per_device_train_batch_size"],
        # torch warns on other devices that it cannot pin memory
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    settings = TrainingArguments(**(defaults | _checkpointing(arguments) | dict(own)))
    # With several GPUs and no launcher, the Trainer would give a batch of this size to each of them.
    settings._n_gpu = min(settings.n_gpu, 1)
    return settings


def check_names(arguments: Iterable[str]) -> None:
    """Refuse arguments that the Trainer does not have, or that `train` takes under another name."""
    for name in arguments:
        if name in _OUR_NAMES:
            raise TypeError(f"train() takes {_OUR_NAMES[name]}= in place of {name}=")
        if name not in _FIELDS or name in _NO_EFFECT:
            close = difflib.get_close_matches(name, (_FIELDS - _NO_EFFECT) | set(_OUR_NAMES.values()))
            hint = f"did you mean {' or '.join(close)}?" if close else "see transformers.TrainingArguments"
            raise TypeError(f"train() has no argument {name!r}: {hint}")


def _check_options(arguments: Mapping[str, Any], saves: bool) -> None:
    for name in ("max_steps", "gradient_accumulation_steps"):
        if arguments.get(name) == 0:  # which the Trainer takes for "not set"
            raise ValueError(f"{name}=0: use a whole number of at least 1, or leave it out")
    if arguments.get("auto_find_batch_size"):
        raise ValueError(
            "auto_find_batch_size=True continues from what was trained before memory ran out: pass a smaller "
            "batch_size, and gradient_accumulation_steps for as many samples a step"
        )
    if (arguments.get("save_strategy", "no") != "no" or arguments.get("load_best_model_at_end")) and not saves:
        raise ValueError("checkpoints need a folder: pass output_dir=")
    if (best := arguments.get("metric_for_best_model")) not in (None, "loss", "eval_loss"):
        raise ValueError(
            f"metric_for_best_model={best!r}: during training only the loss is evaluated. For the best checkpoint by "
            "another metric keep all of them (save_total_limit=None) and evaluate each"
        )


def _checkpointing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rename gradient checkpointing for this version, and use the variant that works with frozen inputs."""
    renamed = {
        name.replace("gradient_checkpointing", f"{_CHECKPOINTING}_checkpointing"): value
        for name, value in arguments.items()
    }
    if renamed.get(f"{_CHECKPOINTING}_checkpointing"):
        key = f"{_CHECKPOINTING}_checkpointing_kwargs"
        renamed[key] = {"use_reentrant": False} | (renamed.get(key) or {})
    return renamed
