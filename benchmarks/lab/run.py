"""One run of a comparison: a fresh base, a method, a learning rate and a seed; and the key that identifies it."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel

import benchmarks.lab.rewritten  # noqa: F401  (registers its tasks, in every process that makes runs)
from benchmarks.lab.methods import Cache, Job, Method, seeded_adapt
from benchmarks.lab.store import Floats, Record, pack
from benchmarks.lab.summary import TRAINING
from tlora.adapters.lora_layers import head_parameters
from tlora.models.loading import PACKAGED, load_model
from tlora.tasks.evaluation import evaluate_samples, losses_of_samples
from tlora.tasks.load import digest_files, load_task_for_model
from tlora.tasks.task import Task
from tlora.training.dataset import evenly_spaced_rows
from tlora.training.run import TrainingRun
from tlora.training.train import LOSS_SAMPLES, train
from tlora.utils.packages import library_versions
from tlora.utils.peak_memory import PeakMemory

Split = Literal["validation", "test"]

EXPECTED = (RuntimeError, ValueError, ArithmeticError, MemoryError, OSError)
"""Errors that make a run a failed one: numbers, memory, a shape that does not suit a method."""

PROTOCOL = 2
"""How runs are made; part of their keys. Keys of the first protocol have none: there, a head had the adapter's rate,
warm-up was 3 % of the steps, all seeds trained on the same samples, and the first of them chose the rate, by the
metric."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What holds for every run of a comparison, whatever the method.

    Attributes
    ----------
    model : str
        Name or folder of the base.
    steps, batch_size : int
        Optimizer steps, and samples in each.
    samples : int
        Training samples that a method may calibrate on.
    dtype : str
        Of the base.
    device : str or None
        Where to compute; not part of a run's key.
    target_modules : str or list of str, optional
        Modules to adapt; part of a run's key unless it is all linear layers.
    forgetting : dict of dict
        Other texts whose loss is measured before and after training: arguments of `tlora.load_task` by task; part of a
        run's key if there are any.
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
        """A tenth of the steps, at least ten, at most half of them: with fewer, LoRA diverges at high rates."""
        return min(max(10, math.ceil(self.steps / 10)), self.steps // 2)


@dataclass(frozen=True)
class Condition:
    """A method on a task at a rank: what a learning rate is searched for.

    Attributes
    ----------
    settings : Settings
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
        Digests of the files of the model and of the task, if they are paths.
    """

    settings: Settings
    task: str
    data: Mapping[str, Any]
    method: Method
    rank: int
    contents: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method.name} at rank {self.rank} on {self.task}"

    def key(self, rate: float, seed: int, split: Split) -> dict[str, Any]:
        """Everything that a run's numbers depend on, except library versions, the machine and the contents of a hub."""
        return self.shared_key() | {"learning_rate": rate, "seed": seed, "split": split}

    def shared_key(self) -> dict[str, Any]:
        """The part of the key that all runs of the condition share."""
        settings = self.settings
        optional: dict[str, Any] = {"contents": dict(self.contents)} if self.contents else {}
        if settings.target_modules:
            optional["target_modules"] = settings.target_modules
        if settings.forgetting:
            optional["forgetting"] = {name: dict(data) for name, data in settings.forgetting.items()}
        return optional | {
            "protocol": PROTOCOL,
            "model": settings.model,
            "dtype": settings.dtype,
            "task": self.task,
            "data": dict(self.data),
            "method": self.method.name,
            "arguments": json.loads(json.dumps(dict(self.method.arguments))),
            "rank": self.rank,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "samples": settings.samples,
        }


def model_contents(model: str) -> dict[str, str]:
    """The digest of a base's files, under ``"model"``, if it is a path: its files may change."""
    path = Path(model)
    if model in PACKAGED or not path.exists():
        return {}
    kinds = {".json", ".safetensors", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py"}
    files = [*path.iterdir(), *path.glob("additional_chat_templates/*")] if path.is_dir() else [path]
    return {"model": digest_files({file.name: file for file in sorted(files) if file.suffix in kinds})}


def load_data(settings: Settings, name: str, data: Mapping[str, Any]) -> Task:
    """The task, tokenized for the model.

    Raises
    ------
    ValueError
        If a split is empty, or there are fewer training samples than ``settings.samples``.
    """
    task = load_task_for_model(settings.model, name, **data)
    for split, least in (("train", settings.samples), ("validation", 1), ("test", 1)):
        if len(getattr(task, split)) < least:
            raise ValueError(
                f"{split} of {name!r} has {len(getattr(task, split))} samples, a comparison needs {least}: "
                f"load it with a larger {split}=, or calibrate on fewer with samples="
            )
    return task


def other_texts(settings: Settings, cache: Cache) -> dict[str, Task]:
    """The texts whose loss is measured before and after training, by name.

    Raises
    ------
    ValueError
        If one has classes, or no test samples.
    """
    return {
        name: cache(("other text", name, data), partial(_load_text, settings.model, name, data))
        for name, data in settings.forgetting.items()
    }


def _load_text(model: str, name: str, data: Mapping[str, Any]) -> Task:
    task = load_task_for_model(model, name, **data)
    if task.kind == "classification" or not len(task.test):
        raise ValueError(f"forgetting: {name} has classes or no test samples: name a text such as reviews")
    return task


def run(
    condition: Condition,
    task: Task,
    rate: float,
    seed: int,
    split: Split,
    cache: Cache,
    head_rate: float | None = None,
) -> Record:
    """Adapt a fresh base, train it and evaluate it on one split.

    Parameters
    ----------
    condition : Condition
        Method, task and rank.
    task : Task
        From `load_data`.
    rate : float
        Learning rate.
    seed : int
        Seed of a fresh head, the adapter, the training samples and their order.
    split : {"validation", "test"}
        The split to evaluate on.
    cache : Cache
        Shared by the conditions with this base and this task.
    head_rate : float, optional
        Learning rate of a fresh head; by default the adapter's.

    Returns
    -------
    dict
        A record of the store: ``key``, ``status`` (``"done"``, ``"diverged"`` or ``"failed"``), metrics and costs.

    Raises
    ------
    KeyboardInterrupt
        If training is interrupted; there is no record of half a run.
    """
    record: Record = {"key": condition.key(rate, seed, split), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    record |= {"versions": library_versions(), "machine": _machine(condition.settings.device)}
    sampled = sample_training_rows(task, condition.settings, seed)
    try:
        return record | _train_and_evaluate(condition, sampled, rate, seed, split, cache, head_rate)
    except EXPECTED as error:
        logger.warning("%s at rate %g failed: %s", condition, rate, error)
        return record | {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def sample_training_rows(task: Task, settings: Settings, seed: int) -> Task:
    """The task with as many training samples as the steps use; each seed has its own if there are more."""
    count = min(settings.steps * settings.batch_size, len(task.train))
    places = np.random.default_rng(seed).permutation(len(task.train))[:count]
    return replace(task, train=task.train.select(places))


def _train_and_evaluate(
    condition: Condition, task: Task, rate: float, seed: int, split: Split, cache: Cache, head_rate: float | None
) -> Record:
    settings = condition.settings
    model, _ = load_model(
        settings.model, num_labels=task.num_labels, seed=seed, dtype=settings.dtype, device=settings.device
    )
    # Rates are chosen by what is learned, not by what is forgotten: the search does not measure other texts.
    texts = other_texts(settings, cache) if split == "test" else {}
    before = cache(("loss before", split, settings.forgetting), lambda: _mean_losses(model, texts))
    base = _base_loss(model, task, seed, cache) if split == "test" else {}
    job = Job(model, task, condition.rank, seed, settings.steps, settings.samples, cache, settings.target_modules)
    started, saved = time.perf_counter(), cache.saved
    adapted = seeded_adapt(condition.method, job)
    preparation = time.perf_counter() - started + cache.saved - saved
    with PeakMemory(adapted.device) as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # divergence and interruption are handled below
        training = _train(condition, adapted, task, rate, seed, head_rate)
    if training.interrupted:
        raise KeyboardInterrupt("the comparison was interrupted; finished runs are in the store")
    outcomes = evaluate_samples(adapted, task, getattr(task, split), max(16, settings.batch_size), progress=False)
    outcomes = {name: outcomes[name] for name in dict.fromkeys(("loss", task.metric))}
    return (
        _results(training, outcomes, split)
        | base
        | (_validation_loss(adapted, task) if split == "test" else {})
        | _forgetting(before, _mean_losses(adapted, texts))
        | {
            "trainable_parameters": training.trainable_parameters,
            "head_parameters": sum(p.numel() for p in head_parameters(adapted)),
            "head_learning_rate": head_rate,
            "preparation_seconds": round(preparation, 3),
            "seconds": round(training.seconds, 3),
            "peak_bytes": peak.bytes,
        }
    )


def _mean_losses(model: Any, texts: Mapping[str, Task]) -> dict[str, float]:
    """Mean loss on the test samples of each text, nats per token."""
    return {
        name: float(losses_of_samples(model, task, evenly_spaced_rows(task.test, LOSS_SAMPLES), 16).mean())
        for name, task in texts.items()
    }


def _base_loss(model: Any, task: Task, seed: int, cache: Cache) -> Record:
    """The loss of the base on the test rows; that of a fresh head depends on the seed."""
    key = ("loss of the base", seed if task.num_labels else None)
    return {"base_loss": cache(key, lambda: float(losses_of_samples(model, task, task.test, 16).mean()))}


def _validation_loss(adapted: PeftModel, task: Task) -> Record:
    """The loss on the validation rows, by which a rate can be chosen among runs that are reported on test rows."""
    loss = float(losses_of_samples(adapted, task, task.validation, 16).mean())
    return {"validation_loss": loss} if math.isfinite(loss) else {}


def _forgetting(before: Mapping[str, float], after: Mapping[str, float]) -> Record:
    """The increase of the losses: the mean, and each."""
    by_text = {name: round(after[name] - loss, 6) for name, loss in before.items()}
    if not by_text or not np.isfinite(list(by_text.values())).all():
        return {}
    return {"forgetting": float(np.mean(list(by_text.values()))), "forgetting_by_text": by_text}


def _train(
    condition: Condition, adapted: PeftModel, task: Task, rate: float, seed: int, head_rate: float | None
) -> TrainingRun:
    return train(
        adapted,
        task,
        learning_rate=rate,
        head_learning_rate=head_rate,
        max_steps=condition.settings.steps,
        warmup_steps=condition.settings.warmup_steps,
        batch_size=condition.settings.batch_size,
        seed=seed,
        evaluation_limit=0,
        progress=False,
        **condition.method.training(condition.rank),
    )


def _results(training: TrainingRun, outcomes: Mapping[str, Floats], split: Split) -> Record:
    """Status, metrics and packed outcomes; numbers that are not finite are left out."""
    metrics = {name: float(values.mean()) for name, values in outcomes.items()}
    finite = all(np.isfinite(value) for value in metrics.values())
    losses = training.history["loss"].dropna()
    record: Record = {
        "status": "diverged" if training.diverged or not finite else "done",
        "steps_done": int(training.history["step"].max()) if len(training.history) else 0,
        "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
    }
    if len(losses) and np.isfinite(losses.iloc[-1]):
        record["last_training_loss"] = round(float(losses.iloc[-1]), 6)
    if split == "test" and finite:
        kept = {**outcomes, TRAINING: losses.to_numpy(np.float64)}
        record["outcomes"] = {name: pack(values) for name, values in kept.items()}
    return record


def _machine(device: str | None) -> str:
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"
