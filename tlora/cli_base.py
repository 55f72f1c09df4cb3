"""The base of a saved adapter, for the commands that take one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlora.adapters.files import ADAPTER_CONFIG, RUN, checked, lora_config, read_training_record
from tlora.adapters.load import classes, load
from tlora.cli_options import Placement
from tlora.models.loading import load_model
from tlora.training.run import TrainingRun


def base_name(folder: Path, model: str | None) -> str:
    """The base model of an adapter.

    Raises
    ------
    FileNotFoundError
        If there is no adapter in the folder.
    ValueError
        If the adapter names no base.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"no adapter in {folder}: name the folder that tlora train or tlora run wrote")
    name = model or lora_config(folder, "tlora").get("base_model_name_or_path")
    if not name:
        raise ValueError(f"the adapter in {folder} does not say what its base model is: pass --model")
    return name


def recorded(folder: Path) -> TrainingRun | None:
    """The run that made an adapter; None where it was made by something else."""
    return TrainingRun.load(folder) if (folder / RUN).is_dir() else None


def loaded(folder: Path, model: str | None, placement: Placement) -> tuple[Any, Any]:
    """The base with the adapter on it, and its tokenizer."""
    name = base_name(folder, model)
    labels = classes(folder, *checked(folder, "tlora"), read_training_record(folder))
    with named_by(folder, model):
        base, tokenizer = load_model(name, num_labels=labels, **asdict(placement))
    return load(folder, base), tokenizer


@contextlib.contextmanager
def named_by(folder: Path, model: str | None) -> Iterator[None]:
    """Add to an error about a base who names it, where nobody did on the command line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if model is None:
            error.add_note(f"(named by {folder / ADAPTER_CONFIG}: pass --model where it is elsewhere now)")
        raise
