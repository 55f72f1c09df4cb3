"""Train an adapter on a task with the Trainer of transformers (stage 5 of TLoRA)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, TaskType
from peft.utils import ModulesToSaveWrapper
from transformers import TrainerCallback, set_seed

from tlora.adapters.attach import attach_options
from tlora.adapters.files import BASE, FROZEN_A
from tlora.adapters.lora_layers import adapter_config, adapter_tensors, lora_updates, trainable_parameters
from tlora.adapters.peft_config import rewrites_base
from tlora.adapters.update import LoraUpdate
from tlora.models.forward import has_argument
from tlora.models.targets import is_causal
from tlora.results import Meta
from tlora.tasks.task import Task
from tlora.training.arguments import training_arguments
from tlora.training.callbacks import ModuleRecorder
from tlora.training.checkpoints import MarkComplete, check_same_training, checkpoint_to_resume, seconds_before
from tlora.training.checks import check_trainable
from tlora.training.dataset import Rows, evenly_spaced_rows
from tlora.training.phases import TrainingPhases
from tlora.training.run import TrainingRun, history_frame
from tlora.training.trainer import (
    AdapterTrainer,
    AllStepsDone,
    MakeOptimizer,
    NotFinite,
    heads_in_float32,
    restore_modules,
    without_notes,
)
from tlora.utils.defaults import BATCH_SIZE, EPOCHS, LEARNING_RATE
from tlora.utils.peak_memory import PeakMemory
from tlora.utils.progress import bars_for
from tlora.utils.validation import as_python_number, check_arguments, require_positive, require_positive_int

LOSS_SAMPLES = 256
"""Samples for a loss without a limit: stable to two digits, and seconds on two cores."""

NOT_ATTACHED = "unknown: the adapter was not attached by tlora.attach in this process"
"""What a run records in place of `attach_options` that are unknown."""

Callbacks = TrainerCallback | Iterable[TrainerCallback]


def train(
    model: PeftModel,
    task: Task | Dataset,
    *,
    learning_rate: float = LEARNING_RATE,
    epochs: float = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    a_learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    freeze_a_after: float | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    evaluation_limit: int | None = None,
    progress: bool = True,
    callbacks: Callbacks = (),
    optimizer: MakeOptimizer | None = None,
    **arguments: Any,
) -> TrainingRun:
    """Train what requires a gradient in an adapted model: ``B``, and the head of a classifier.

    The model is trained in place, and its modules return to the modes they had. Interrupting the cell, or a callback
    that sets ``control.should_training_stop``, ends training early and still returns the run. A second call continues
    from the ``B`` of the first, and the run records it: ``tlora.attach(..., replace=True)`` starts again.

    Parameters
    ----------
    model : peft.PeftModel
        From `tlora.attach`, `tlora.load_adapter` or PEFT. It is trained on its device: a model on the CPU stays there
        even if there is a GPU, unless ``use_cpu=False`` is passed, and one on a GPU uses no other GPU. For several GPUs
        start the script with ``torchrun``. The base may already be sharded by FSDP2: then every process calls this,
        with batches of its own.
    task : Task or datasets.Dataset
        A task, or tokenized rows: ``input_ids``, ``labels`` (token ids, -100 for no label, or one class index),
        optionally ``attention_mask`` and other inputs of the model. Rows have no held-out samples; their only metric is
        ``train_loss``.
    learning_rate : float
        Peak learning rate. The default is for small adapters, alpha = rank of 4 to 64 with only ``B`` trained; the
        authors use 2e-5 at alpha = rank = 128.
    epochs : float
        Passes over the training samples; ``max_steps=`` overrides it.
    batch_size : int
        Samples a step and device; ``gradient_accumulation_steps=`` multiplies it.
    seed : int
        Seed of the data order, dropout and all else. Sets the global generators, as the Trainer does.
    a_learning_rate, head_learning_rate : float, optional
        Peak learning rates of ``A``, if it is trained, and of the head of a classifier; by default that of ``B``. A new
        head needs a rate (about 1e-3) that is too high for a whole base.
    freeze_a_after : float, optional
        Fraction of the steps after which ``A`` is frozen, e.g. 0.2: later steps then cost what they cost with ``A``
        frozen from the start. ``A`` cannot move before the third step, as the first has a rate of zero and ``B`` is
        still zero in the second.
    output_dir : path-like, optional
        Folder for checkpoints: four a run unless ``save_steps`` says otherwise, of which the last two are kept. None
        are written without it. It may hold those of an earlier training only with ``resume``.
    resume : bool or path-like
        True continues from the last complete checkpoint in ``output_dir``, a path from that checkpoint: with the same
        options, samples and base, and for longer if ``epochs`` or ``max_steps`` is larger.
    evaluation_limit : int, optional
        Largest number of samples to evaluate on before, after, and for ``eval_loss`` in between; 0 skips evaluation.
        By default metrics use all test samples (or validation samples, if there are no test samples), and a loss 256.
    progress : bool
        Show progress bars.
    callbacks : transformers.TrainerCallback or iterable of them
        Called by the Trainer. A ``ModuleRecorder`` among them replaces the default one.
    optimizer : callable, optional
        Makes the optimizer from the model and the peak learning rate, for adapters that have one of their own, e.g.
        ``lambda model, rate: peft.optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, lr=rate,
        loraplus_lr_ratio=16)``. AdamW by default.
    **arguments
        Further arguments of `transformers.TrainingArguments`, e.g. ``bf16=True``, ``max_steps=200``,
        ``gradient_checkpointing=True``, ``eval_strategy="epoch"``, ``report_to="wandb"``.

    Returns
    -------
    TrainingRun
        The losses, the statistics of each module, the metrics and the adapter. It does not hold the model.

    Raises
    ------
    TypeError
        If the model is not a ``PeftModel``, the task is neither a task nor a dataset, or an argument is unknown.
    ValueError
        If there is nothing to train, a trainable parameter would not be saved with the adapter, a number is out of
        range, or a checkpoint is of another adapter, training or base.
    FileNotFoundError
        If there is no checkpoint to resume from.

    Warns
    -----
    UserWarning
        If training stopped early, met a loss or gradient that is not finite (the step is not taken), left some ``B`` at
        zero, had class labels but no head to train, or could not write a checkpoint.

    Notes
    -----
    As in the authors' example: AdamW without weight decay, a cosine schedule, one epoch. Warm-up takes a tenth of the
    steps instead of their 3 %, with which LoRA diverged at rates that are otherwise good. The adapter has no dropout;
    that of the base model, if any, is active. Gradients are clipped at norm 1, the Trainer's default. A head is trained
    in float32 and rounded to the type of the base at the end, as PEFT does for ``A`` and ``B``; biases of the base
    (``bias=`` of PEFT) are not.

    References
    ----------
    TLoRA, arXiv 2604.18124: ``W`` and ``A`` stay fixed, ``B`` is trained.

    Examples
    --------
    >>> run = tlora.train(adapted, task, max_steps=4, batch_size=4, progress=False)
    >>> run
    TrainingRun(4 steps in ... s, loss ...)
    >>> run.save("trained").name
    'trained'
    """
    check_arguments(train, locals())
    # Numbers of NumPy and torch become Python's: the Trainer writes them into its checkpoints as JSON.
    learning_rate, epochs = require_positive(learning_rate, "learning_rate"), require_positive(epochs, "epochs")
    batch_size, seed = require_positive_int(batch_size, "batch_size"), int(seed)
    arguments = {name: as_python_number(value) for name, value in arguments.items()}
    if evaluation_limit is not None:
        evaluation_limit = require_positive_int(evaluation_limit, "evaluation_limit", 0)
    check_trainable(model)
    phases = TrainingPhases(*map(as_python_number, (a_learning_rate, head_learning_rate, freeze_a_after)))
    phases.check(model)
    data = as_task(task, model)
    checkpoint = checkpoint_to_resume(resume, output_dir, model)
    held_out = None if evaluation_limit == 0 else data.validation
    validation = evenly_spaced_rows(held_out, evaluation_limit or LOSS_SAMPLES) if held_out else None
    recorder, callbacks = _with_recorder(callbacks)
    # A run is displayed, and uploaded with the adapter: no token of a hub is recorded.
    recipe: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    recipe |= {name: value for name, value in arguments.items() if not name.endswith("_token")}
    recipe |= {"evaluation_limit": evaluation_limit, "resume": checkpoint} | _start(data, model) | phases.options()
    recipe["evaluated_samples"] = _evaluated_samples(data, evaluation_limit)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tlora-")) if output_dir is None else output_dir
        own_arguments = {
            "learning_rate": learning_rate,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
            "seed": seed,
            "output_dir": os.fspath(folder),
            "resume_from_checkpoint": checkpoint,
            "disable_tqdm": True,  # the trainer shows its own bar
        }
        settings = training_arguments(own_arguments, arguments, validation is not None, output_dir is not None, model)
        earlier = 0.0 if checkpoint is None else seconds_before(checkpoint)
        record = check_same_training(checkpoint, settings, data.train, model, phases.options())
        stack.enter_context(restore_modules(model))
        trainer = AdapterTrainer(
            model,
            progress,
            [*callbacks, MarkComplete(record, earlier)],
            optimizer,
            phases,
            args=settings,
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=validation,
        )
        with bars_for("before training"):
            before = _evaluate(data, model, evaluation_limit, progress)
        set_seed(seed)  # the evaluation may have used random numbers
        ending = _train(trainer, model, checkpoint)
        after: dict[str, float] = {}
        if not ending.skip_evaluation:
            try:
                with bars_for("after training"):
                    after = _evaluate(data, model, evaluation_limit, progress)
            except KeyboardInterrupt:
                warnings.warn("the evaluation after training was interrupted: run.after is empty", stacklevel=2)
    _warn(ending, trainer, lora_updates(model))
    recipe["steps"] = [trainer.state.global_step, trainer.state.max_steps]  # done and planned
    plain = json.loads(json.dumps(recipe, default=str))
    return TrainingRun(
        history=history_frame(trainer.state.log_history),
        module_history=recorder.to_frame(),
        before=before,
        after=after,
        seconds=earlier + ending.seconds,
        interrupted=ending.interrupted,
        diverged=ending.diverged,
        meta=Meta(model.config.name_or_path, data.name, plain, seed, len(data.train)),
        peak_bytes=ending.peak_bytes,
        **_adapter(model, record),
    )


@dataclass(frozen=True)
class _Ending:
    """How training ended."""

    seconds: float
    peak_bytes: int | None
    reason: str  # empty if all steps were done
    step: int  # the step whose adapter the run has
    interrupted: bool
    diverged: bool
    skip_evaluation: bool


def _train(trainer: AdapterTrainer, model: PeftModel, checkpoint: str | None) -> _Ending:
    started, peak = time.perf_counter(), PeakMemory(model.device)
    reason, diverged, skip_evaluation = "", False, False
    try:
        with peak, heads_in_float32(model), without_notes(), torch.inference_mode(False), torch.enable_grad():
            trainer.train(resume_from_checkpoint=checkpoint)
    except AllStepsDone:
        if trainer.args.load_best_model_at_end and trainer.best_step:
            trainer._load_best_model()
    except KeyboardInterrupt:
        reason, skip_evaluation = "training was interrupted", True
    except NotFinite as error:
        reason, diverged, skip_evaluation = str(error), True, True
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second interrupt: the run is kept all the same
            trainer.end()
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if not reason and done < planned:
        reason = "a callback stopped training"
    best = trainer.best_step if trainer.args.load_best_model_at_end and not skip_evaluation else None
    if reason:
        holds = f"that of step {best}, the best" if best else "the adapter as it was then"
        reason += f" after {done} of {planned} steps; the run holds {holds}"
    seconds = time.perf_counter() - started
    return _Ending(seconds, peak.bytes, reason, best or done, bool(reason) and not diverged, diverged, skip_evaluation)


def _warn(ending: _Ending, trainer: AdapterTrainer, updates: Mapping[str, LoraUpdate]) -> None:
    planned = trainer.state.max_steps
    advice = f" (a learning rate below {trainer.args.learning_rate:g} may help)" if ending.diverged else ""
    if ending.reason and not any(getattr(one, "stopped", False) for one in trainer.callback_handler.callbacks):
        warnings.warn(ending.reason + advice, stacklevel=3)
    # The first warm-up step has a learning rate of zero: a B of zero is expected then.
    zero = [name for name, update in updates.items() if update.b.requires_grad and not update.b.any()]
    if zero and ending.step > min(trainer.args.get_warmup_steps(planned), planned - 1):
        more = f" and {len(zero) - 3} more" if len(zero) > 3 else ""
        warnings.warn(
            f"B is still zero after {ending.step} steps in {', '.join(zero[:3])}{more}: no gradient reached it, or "
            "the learning rate was zero (a single step is all warm-up: take more, or in Python warmup_steps=0)",
            stacklevel=3,
        )


def as_task(task: Task | Dataset, model: PeftModel) -> Task | Rows:
    """Wrap a dataset in `Rows`; check that there is something to train on."""
    if isinstance(task, Dataset):
        base = model.get_base_model()
        others = set(task.column_names) - {"input_ids", "attention_mask", "labels"}
        inputs = tuple(name for name in sorted(others) if has_argument(base, name))
        has_encoder = bool(getattr(base.config, "is_encoder_decoder", False))
        task = Rows(task, getattr(model.config, "pad_token_id", None) or 0, int(is_causal(base)), inputs, has_encoder)
    if not len(task.train):
        raise ValueError(f"task {task.name!r} has no training samples")
    has_head = any(isinstance(module, ModulesToSaveWrapper) for module in model.modules())
    if np.ndim(task.train[0]["labels"]) == 0 and not has_head:
        warnings.warn(
            "the labels are classes, but no head is trained with the adapter: a head is recognized next to the module "
            f"that base_model_prefix of {type(model.get_base_model()).__name__} names",
            stacklevel=3,
        )
    return task


def _with_recorder(callbacks: Callbacks) -> tuple[ModuleRecorder, list[TrainerCallback]]:
    several = [callbacks] if isinstance(callbacks, TrainerCallback) else list(callbacks)
    recorder = next((callback for callback in several if isinstance(callback, ModuleRecorder)), None)
    return (recorder, several) if recorder else (recorder := ModuleRecorder(), [recorder, *several])


def _start(task: Task | Rows, model: PeftModel) -> dict[str, Any]:
    """Return what a recipe records in addition to the arguments: how the training starts."""
    is_classifier = model.peft_config[model.active_adapter].task_type == TaskType.SEQ_CLS
    return {
        "evaluated_on": _evaluated_on(task),
        "attach": attach_options(model) or NOT_ATTACHED,
        "b_began_at_zero": not any(update.b.any() for update in lora_updates(model).values()),
        "num_labels": model.config.num_labels if is_classifier else None,
    }


def _evaluated_on(task: Task | Rows) -> str:
    """Return the split that the metrics are taken on; empty if nothing is held out."""
    if isinstance(task, Rows):
        return "train"
    return next((name for name in ("test", "validation") if len(getattr(task, name, None) or ())), "")


def _evaluated_samples(task: Task | Rows, limit: int | None) -> int:
    """Return how many samples of that split the metrics are taken on."""
    split = _evaluated_on(task)
    if limit == 0 or not split:
        return 0
    samples = len(getattr(task, split))
    return min(limit or (LOSS_SAMPLES if isinstance(task, Rows) else samples), samples)


def _evaluate(task: Task | Rows, model: PeftModel, limit: int | None, progress: bool) -> dict[str, float]:
    if limit == 0:
        return {}
    if isinstance(task, Rows):
        return {"train_loss": task.loss(model, limit or LOSS_SAMPLES)}
    split = _evaluated_on(task)
    return task.evaluate(model, split, limit, progress=progress) if split else {}


def _adapter(model: PeftModel, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run keeps of the model; the record has the fingerprints of its base."""
    prints = {name: torch.tensor(values) for name, values in record[BASE].items()}
    updates, config = lora_updates(model), model.peft_config[model.active_adapter]
    return {
        "adapter": {name: t.detach().cpu().clone().contiguous() for name, t in adapter_tensors(model).items()},
        "adapter_config": adapter_config(model),
        "ranks": {name: update.rank for name, update in updates.items()},
        "scalings": {name: float(update.scaling) for name, update in updates.items()},
        # nobody else has a base that the initialization has rewritten
        "fingerprints": {} if rewrites_base(config.to_dict()) else prints,
        "frozen_a": record[FROZEN_A],
        "trainable_parameters": trainable_parameters(model),
    }
