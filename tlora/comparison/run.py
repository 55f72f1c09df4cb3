"""One run of a comparison: a fresh base, a method, a learning rate, a seed; and what identifies it."""

from __future__ import annotations

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel

from tlora.adapters.lora_layers import head_parameters
from tlora.comparison.methods import Job, Memory, Method, seeded_adapt
from tlora.comparison.store import Floats, Record, packed
from tlora.comparison.summary import TRAINING
from tlora.models.loading import PACKAGED, load_model
from tlora.tasks.evaluation import evaluate_samples, losses_of_samples
from tlora.tasks.load import digest_files, load_task_for_model
from tlora.tasks.task import Task
from tlora.training.dataset import evenly_spaced_rows
from tlora.training.run import TrainingRun
from tlora.training.train import LOSS_SAMPLES, train
from tlora.utils.packages import library_versions

Split = Literal["validation", "test"]

EXPECTED = (RuntimeError, ValueError, ArithmeticError, MemoryError, OSError)
"""What a run may fail with and become a row: numbers, memory, a shape that does not suit a method."""

PROTOCOL = 2
"""How runs are made, in their keys. Those of the first protocol have none there: a head had the adapter's rate, warm-up
was 3 % of the steps, all seeds trained on the same samples, and the first of them chose the rate, by the metric."""

logger = logging.getLogger(__name__)
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Terms:
    """What holds for every run of a comparison, whatever the method.

    Attributes
    ----------
    model : str
        Name or folder of the base.
    steps, batch_size : int
        Optimiser steps, and samples in each.
    samples : int
        Training samples that a method may look at before.
    dtype : str
        Of the base.
    device : str or None
        Where it computes; not in a run's key.
    target_modules : str or list of str, optional
        What is adapted; in a run's key where it is not all linear layers.
    forgetting : dict of dict
        Other texts whose loss is measured before and after: arguments of `tlora.load_task` by task; in a run's key
        where there are any.
    """

    model: str
    steps: int
    batch_size: int
    samples: int
    dtype: str = "float32"
    device: str | None = None
    target_modules: str | list[str] | None = None
    forgetting: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def warmup_steps(self) -> int:
        """A tenth of the steps, at least ten, at most half of them: after fewer, high rates lead LoRA astray."""
        return min(max(10, math.ceil(self.steps / 10)), self.steps // 2)


@dataclass(frozen=True)
class Cell:
    """A method on a task at a rank: what a learning rate is searched for.

    Attributes
    ----------
    terms : Terms
        What it shares with the others.
    task : str
        Name or path of the task.
    data : dict
        Arguments of `tlora.load_task`.
    method : Method
        How the base is adapted.
    rank : int
        Nominal rank.
    contents : dict of str
        Digests of the files that are meant, where the model or the task is a path.
    """

    terms: Terms
    task: str
    data: Mapping[str, Any]
    method: Method
    rank: int
    contents: Mapping[str, str] = field(default_factory=dict)

    def key(self, rate: float, seed: int, split: Split) -> dict[str, Any]:
        """Everything that a run's numbers depend on, library versions, the machine and what a hub holds aside."""
        return self.about() | {"learning_rate": rate, "seed": seed, "split": split}

    def about(self) -> dict[str, Any]:
        """The part of the key that all runs of the cell have."""
        terms = self.terms
        known: dict[str, Any] = {"contents": dict(self.contents)} if self.contents else {}
        if terms.target_modules:
            known["target_modules"] = terms.target_modules
        if terms.forgetting:
            known["forgetting"] = {name: dict(data) for name, data in terms.forgetting.items()}
        return known | {
            "protocol": PROTOCOL,
            "model": terms.model,
            "dtype": terms.dtype,
            "task": self.task,
            "data": dict(self.data),
            "method": self.method.name,
            "arguments": json.loads(json.dumps(dict(self.method.arguments))),
            "rank": self.rank,
            "steps": terms.steps,
            "batch_size": terms.batch_size,
            "samples": terms.samples,
        }


def model_contents(model: str) -> dict[str, str]:
    """The digest of a base's files, under ``"model"``, where it is a path; they may come to be others."""
    path = Path(model)
    if model in PACKAGED or not path.exists():
        return {}
    kinds = {".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py"}
    files = [*path.iterdir(), *path.glob("additional_chat_templates/*")] if path.is_dir() else [path]
    return {"model": digest_files({file.name: file for file in sorted(files) if file.suffix in kinds})}


def load_data(terms: Terms, name: str, data: Mapping[str, Any]) -> Task:
    """The task in the tokens of the model.

    Raises
    ------
    ValueError
        If a split is empty, there are fewer training samples than are to be calibrated on, or the task asks for text
        and the model writes none.
    """
    task = load_task_for_model(terms.model, name, **data)
    for split, least in (("train", terms.samples), ("validation", 1), ("test", 1)):
        if len(getattr(task, split)) < least:
            raise ValueError(
                f"{split} of {name!r} has {len(getattr(task, split))} samples, a comparison needs {least} there: "
                f"load it with a larger {split}=, or calibrate on fewer with samples="
            )
    return task


def other_texts(terms: Terms, memory: Memory) -> dict[str, Task]:
    """The texts whose loss is measured before and after, by name.

    Raises
    ------
    ValueError
        If one has classes, or no test samples.
    """
    return {
        name: memory(("other text", name, data), partial(_load_text, terms.model, name, data))
        for name, data in terms.forgetting.items()
    }


def _load_text(model: str, name: str, data: Mapping[str, Any]) -> Task:
    task = load_task_for_model(model, name, **data)
    if task.kind == "classification" or not len(task.test):
        why = "has classes, and no text that a model writes" if len(task.test) else "has no test samples"
        raise ValueError(f"forgetting: {name} {why}: name another task, such as reviews")
    return task


def run(
    cell: Cell, task: Task, rate: float, seed: int, split: Split, memory: Memory, head_rate: float | None = None
) -> Record:
    """Adapt a fresh base, train it and evaluate it on one split.

    Parameters
    ----------
    cell : Cell
        Method, task and rank.
    task : Task
        From `load_data`.
    rate : float
        Learning rate.
    seed : int
        Seed of a fresh head, of the adapter, and of which samples are trained on, in which order.
    split : {"validation", "test"}
        What is evaluated.
    memory : Memory
        Of the cells with this base and this task.
    head_rate : float, optional
        Learning rate of a fresh head; by default that of the adapter.

    Returns
    -------
    dict
        A record of the store: ``key``, ``status`` (``"done"``, ``"diverged"`` or ``"failed"``), metrics and costs.

    Raises
    ------
    KeyboardInterrupt
        If training is interrupted: there is no record then.
    """
    record: Record = {"key": cell.key(rate, seed, split), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    record |= {"versions": library_versions(), "machine": _machine(cell.terms.device)}
    try:
        return record | _measured(cell, drawn(task, cell.terms, seed), rate, seed, split, memory, head_rate)
    except EXPECTED as error:
        logger.warning("%s at rate %g on %s failed: %s", cell.method.name, rate, cell.task, error)
        return record | {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def drawn(task: Task, terms: Terms, seed: int) -> Task:
    """The task with as many training samples as the steps take, of its own for each seed where there are more."""
    wanted = min(terms.steps * terms.batch_size, len(task.train))
    places = np.random.default_rng(seed).permutation(len(task.train))[:wanted]
    return replace(task, train=task.train.select(places))


def _measured(
    cell: Cell, task: Task, rate: float, seed: int, split: Split, memory: Memory, head_rate: float | None
) -> Record:
    terms = cell.terms
    model, _ = load_model(terms.model, num_labels=task.num_labels, seed=seed, dtype=terms.dtype, device=terms.device)
    # Rates are chosen by what is learnt, not by what is forgotten.
    measured = other_texts(terms, memory) if split == "test" else {}
    before = memory(("loss before", split, terms.forgetting), lambda: _losses(model, measured))
    job = Job(model, task, cell.rank, seed, terms.steps, terms.samples, memory, terms.target_modules)
    started, saved = time.perf_counter(), memory.saved
    adapted = seeded_adapt(cell.method, job)
    preparation = time.perf_counter() - started + memory.saved - saved
    with PeakMemory(adapted.device) as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it diverged, or was interrupted, is seen below
        trained = _train(cell, adapted, task, rate, seed, head_rate)
    if trained.interrupted:
        raise KeyboardInterrupt("the comparison was interrupted; what is done is in the store")
    each = evaluate_samples(adapted, task, getattr(task, split), max(16, terms.batch_size), progress=False)
    found = {name: each[name] for name in dict.fromkeys(("loss", task.metric))}
    return (
        _result(trained, found, split)
        | _forgotten(before, _losses(adapted, measured))
        | {
            "trainable_parameters": trained.trainable_parameters,
            "head_parameters": sum(p.numel() for p in head_parameters(adapted)),
            "head_learning_rate": head_rate,
            "preparation_seconds": round(preparation, 3),
            "seconds": round(trained.seconds, 3),
            "peak_bytes": peak.bytes,
        }
    )


def _losses(model: Any, others: Mapping[str, Task]) -> dict[str, float]:
    """Mean loss on test samples of each, nats per token."""
    return {
        name: float(losses_of_samples(model, task, evenly_spaced_rows(task.test, LOSS_SAMPLES), 16).mean())
        for name, task in others.items()
    }


def _forgotten(before: Mapping[str, float], after: Mapping[str, float]) -> Record:
    """By how much losses have increased: the mean, and each."""
    each = {name: round(after[name] - loss, 6) for name, loss in before.items()}
    if not each or not np.isfinite(list(each.values())).all():
        return {}
    return {"forgetting": float(np.mean(list(each.values()))), "forgetting_by_text": each}


def _train(cell: Cell, adapted: PeftModel, task: Task, rate: float, seed: int, head_rate: float | None) -> TrainingRun:
    return train(
        adapted,
        task,
        learning_rate=rate,
        head_learning_rate=head_rate,
        max_steps=cell.terms.steps,
        warmup_steps=cell.terms.warmup_steps,
        batch_size=cell.terms.batch_size,
        seed=seed,
        evaluation_limit=0,
        progress=False,
        **cell.method.training(cell.rank),
    )


def _result(trained: TrainingRun, found: Mapping[str, Floats], split: Split) -> Record:
    """Status, metrics and outcomes, from the values of each sample; numbers that are not finite are left out."""
    metrics = {name: float(values.mean()) for name, values in found.items()}
    finite = all(np.isfinite(value) for value in metrics.values())
    losses = trained.history["loss"].dropna()
    record: Record = {
        "status": "diverged" if trained.diverged or not finite else "done",
        "steps_done": int(trained.history["step"].max()) if len(trained.history) else 0,
        "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
    }
    if len(losses) and np.isfinite(losses.iloc[-1]):
        record["last_training_loss"] = round(float(losses.iloc[-1]), 6)
    if split == "test" and finite:
        kept = {**found, TRAINING: losses.to_numpy(np.float64)}
        record["outcomes"] = {name: packed(values) for name, values in kept.items()}
    return record


def _machine(device: str | None) -> str:
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


class PeakMemory:
    """Measures a ``with`` block: CUDA memory allocated where the device is CUDA, else the process's resident memory.

    Parameters
    ----------
    device : torch.device
        Where the model is.

    Attributes
    ----------
    bytes : int or None
        After the block: the peak, with what was there before it. None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self._told = True

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            _RESET.write_text("5")  # see proc(5): sets the peak back to what is resident now
        except OSError:
            self._told = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._told:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
            self.bytes = 1024 * int(found[1]) if found else None
