"""Load what commands work on: a base with its task, an adapter on its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tlora
from tlora.cli.options import Data, Placement
from tlora.cli.output import Report


def load_data(name: str, data: Data, report: Report, samples: int = 0, **where: Any) -> tlora.Task:
    """Return the task in the tokens of a base, which is not loaded: an error in the data does not have to wait for it.

    ``samples`` is how many training samples it needs at least, ``where`` the revision of the base if there is one.
    """
    from tlora.tasks.load import load_task_for_model

    with report.step(f"reading {data.task} for {name}"):
        options = {"max_length": data.max_length, "seed": data.seed, "progress": report.progress}
        task = load_task_for_model(name, data.task, where, **options, **data.sizes())
    report.say(f"  {task!r}")
    if samples:
        task.calibration(samples)  # refuses more than there are
    return task


def load_texts_for(name: str, sources: list[str], **where: Any) -> dict[str, tlora.Task]:
    """Return texts in the tokens of a base, which is not loaded; ``where`` is its revision if there is one."""
    from tlora.models.loading import load_config, load_tokenizer, set_length_limit

    tokenizer = set_length_limit(load_tokenizer(name, **where), load_config(name, **where))
    return tlora.load_texts(tokenizer, *sources)


def load_base(name: str, task: tlora.Task, seed: int, placement: Placement, report: Report, **where: Any) -> Any:
    """Return the model, with as many classes as the task has."""
    with report.step(f"loading {name}"):
        model, _ = tlora.load_model(name, num_labels=task.num_labels, seed=seed, **placement.arguments(), **where)
    dtype = str(model.dtype).removeprefix("torch.")
    report.say(f"  {type(model).__name__}, {model.num_parameters():,} parameters, {dtype} on {model.device}")
    return model


def base_name(folder: Path, model: str | None) -> tuple[str, dict[str, Any]]:
    """Return the base model of an adapter, by default the one it names, and its revision if the adapter names one."""
    from tlora.adapters.files import check_files, read_config
    from tlora.adapters.load_adapter import named_base

    check_files(folder)
    return named_base(folder, read_config(folder, "tlora"), "--model") if model is None else (model, {})


def load_adapted(folder: Path, model: str | None, placement: Placement) -> tuple[Any, Any]:
    """Return the base with the adapter on it, its classes named as in training, and its tokenizer."""
    from tlora.adapters.files import read_training_record, validate_adapter
    from tlora.adapters.load_adapter import saved_classes

    name, where = base_name(folder, model)
    record = read_training_record(folder)
    labels = saved_classes(folder, *validate_adapter(folder, "tlora"), record)
    base, tokenizer = tlora.load_model(name, num_labels=labels, **placement.arguments(), **where)
    if classes := record.meta and record.meta.recipe.get("classes"):
        base.config.id2label = dict(enumerate(classes))
        base.config.label2id = {name: index for index, name in enumerate(classes)}
    return tlora.load_adapter(folder, base), tokenizer
