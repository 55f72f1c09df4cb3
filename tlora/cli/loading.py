"""Load what commands work on: a base with its task, an adapter on its base."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import tlora
from tlora.cli.options import Data, Placement
from tlora.cli.output import Report


def load_base(name: str, data: Data, placement: Placement, report: Report, **where: Any) -> tuple[Any, tlora.Task]:
    """Return the model, with as many classes as the task has, and the task tokenized for it."""
    from tlora.tasks.load import load_task_for_model

    with report.step(f"loading {name} and {data.task}"):
        options = {"max_length": data.max_length, "seed": data.seed, "progress": report.progress}
        task = load_task_for_model(name, data.task, **options, **data.sizes())
        model, _ = tlora.load_model(name, num_labels=task.num_labels, seed=data.seed, **placement.arguments(), **where)
    dtype = str(model.dtype).removeprefix("torch.")
    report.say(f"  {type(model).__name__}, {model.num_parameters():,} parameters, {dtype} on {model.device}")
    report.say(f"  {task!r}")
    return model, task


def base_name(folder: Path, model: str | None) -> tuple[str, dict[str, Any]]:
    """Return the base model of an adapter, and its revision if the adapter names one."""
    from tlora.adapters.files import check_files, read_config, revision

    check_files(folder)
    config = read_config(folder, "tlora") if model is None else {"base_model_name_or_path": model}
    if not (name := config.get("base_model_name_or_path")):
        raise ValueError(f"the adapter in {folder} does not say what its base model is: pass --model")
    return name, revision(config)


def load_adapted(folder: Path, model: str | None, placement: Placement) -> tuple[Any, Any]:
    """Return the base with the adapter on it, its classes named as in training, and its tokenizer."""
    from tlora.adapters.files import read_training_record, validate_adapter
    from tlora.adapters.load_adapter import saved_classes

    name, where = base_name(folder, model)
    record = read_training_record(folder)
    labels = saved_classes(folder, *validate_adapter(folder, "tlora"), record)
    with explain_base(folder, model):
        base, tokenizer = tlora.load_model(name, num_labels=labels, **placement.arguments(), **where)
    if classes := record.meta and record.meta.recipe.get("classes"):
        base.config.id2label = dict(enumerate(classes))
        base.config.label2id = {name: index for index, name in enumerate(classes)}
    return tlora.load_adapter(folder, base), tokenizer


def explain_base(folder: Path, model: str | None) -> contextlib.AbstractContextManager[None]:
    """Add to an error about a base that its name comes from the adapter, unless the command line gave it."""
    from tlora.adapters import files

    return files.explain_base(folder, "--model") if model is None else contextlib.nullcontext()
