"""Train an adapter on a task, with the Trainer of transformers (stage 5 of TLoRA)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, TaskType
from peft.utils import ModulesToSaveWrapper
from transformers import TrainerCallback, set_seed

from tlora.adapters.attach import attach_options
from tlora.adapters.files import BASE, FROZEN_A
from tlora.adapters.lora_layers import (
    LoraModule,
    adapter_config,
    adapter_tensors,
    lora_modules,
    rewrites_base,
    trainable_parameters,
)
from tlora.models.forward import has_argument
from tlora.models.targets import is_causal
from tlora.results import Meta
from tlora.tasks.task import Task
from tlora.training.arguments import check_numbers, training_arguments
from tlora.training.callbacks import ModuleRecorder
from tlora.training.checkpoints import MarkWhole, checkpoint_to_resume, same_training
from tlora.training.checks import check_trainable
from tlora.training.dataset import Rows, evenly_spaced_rows
from tlora.training.phases import TrainingPhases
from tlora.training.run import TrainingRun, history_frame
from tlora.training.trainer import AdapterTrainer, MakeOptimizer, NotFinite, heads_in_float32, restored
from tlora.utils.defaults import BATCH_SIZE, EPOCHS, LEARNING_RATE

# Samples that a loss is taken over where no limit is asked for: steady to two digits, seconds on two cores.
LOSS_SAMPLES = 256
# What a run says of how A began, where `attach_options` cannot.
NOT_ATTACHED = "unknown: the adapter was not attached by tlora.attach in this process"

Callbacks = TrainerCallback | Iterable[TrainerCallback]

_scratch = partial(tempfile.TemporaryDirectory, prefix="tlora-")


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

    The model is trained in place and stays usable afterwards, in the modes it had. Interrupting the cell, or
    a callback that sets ``control.should_training_stop``, ends training early and still returns the run. Called
    again, it goes on from the ``B`` that it left, and the run says so: ``tlora.attach(..., replace=True)``
    begins again.

    Parameters
    ----------
    model : peft.PeftModel
        From `tlora.attach`, `tlora.load` or PEFT itself. It is trained where it is: one on
        the CPU on the CPU, though there be a GPU, unless ``use_cpu=False`` is passed on; one on a GPU on that
        alone, though there be more: for several start the script with ``torchrun``. Its base may be sharded by FSDP2
        before: then every process calls this, with a batch of its own at each step.
    task : Task or datasets.Dataset
        A task, or tokenized rows: ``input_ids``, ``labels`` (token ids with -100 where there is no label, or
        one class index), optionally ``attention_mask`` and what else the model takes. Rows alone have no held-out
        samples; their only metric is ``train_loss``.
    learning_rate : float
        Peak learning rate. The default is for small adapters, alpha = rank of 4 to 64 with only ``B``
        trained; the authors take 2e-5 at alpha = rank = 128.
    epochs : float
        Passes over the training samples; ``max_steps=`` overrides it.
    batch_size : int
        Samples a step and device; ``gradient_accumulation_steps=`` multiplies it.
    seed : int
        Seed of the data order, dropout and all else. Sets the global generators, as the Trainer does.
    a_learning_rate, head_learning_rate : float, optional
        Peak learning rates of ``A``, where it is trained, and of the head of a classifier; by default that of ``B``.
        A new head learns at rates (about 1e-3) at which a whole base does not.
    freeze_a_after : float, optional
        Part of all steps after which ``A`` stays as it is, e.g. 0.2: it is aimed by training, and then costs no more.
    output_dir : path-like, optional
        Folder for checkpoints: four a run unless ``save_steps`` says otherwise, of which the last two are
        kept. Without it there are none. With ``resume``, those of an earlier training may be there.
    resume : bool or path-like
        True goes on from the last whole checkpoint in ``output_dir``, a path from that checkpoint: in the same way,
        with the same samples and base, for longer if ``epochs`` or ``max_steps`` says so.
    evaluation_limit : int, optional
        Most samples to evaluate on before, after, and for ``eval_loss`` in between; 0 evaluates nothing.
        Without it the metrics before and after take all test samples (those of the validation split, where
        there are none), and a loss at most 256.
    progress : bool
        Show progress bars.
    callbacks : transformers.TrainerCallback or iterable of them
        Called by the Trainer. A ``ModuleRecorder`` among them takes the place of the one that is added
        otherwise.
    optimizer : callable, optional
        Makes the optimizer from the model and the peak learning rate, for adapters that have one of their own, e.g.
        ``lambda model, rate: peft.optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, lr=rate,
        loraplus_lr_ratio=16)``. AdamW by default.
    **arguments
        Anything else that `transformers.TrainingArguments` takes, e.g. ``bf16=True``, ``max_steps=200``,
        ``gradient_checkpointing=True``, ``eval_strategy="epoch"``, ``report_to="wandb"``.

    Returns
    -------
    TrainingRun
        The losses, the statistics of each module, the metrics and the adapter; it holds no model.

    Raises
    ------
    TypeError
        If the model is not a ``PeftModel``, the task neither a task nor a dataset, or an argument is unknown.
    ValueError
        If there is nothing to train, no sample, a merged adapter, a trainable parameter that the adapter
        would not save or would save with another scale, a number out of range, a GPU that the Trainer does not
        take, a checkpoint of another adapter, training or base or without the state of its optimizer, or checkpoints
        in a folder for a new training.
    FileNotFoundError
        If there is no checkpoint to resume from.

    Warns
    -----
    UserWarning
        If training was stopped early, met a loss or gradient that is not finite (the weights never see it),
        left some ``B`` at zero, trained no head where labels are classes, could not write a checkpoint, or was given
        a base whose vocabulary was resized.

    Notes
    -----
    As in the authors' example: AdamW without weight decay, a cosine schedule, one epoch. Warm-up takes a tenth of the
    steps, and not their 3 %, after which LoRA came apart at rates that it learns well at otherwise. The
    adapter has no dropout; the base model's own, where it has any, is active. Gradients are clipped at norm
    1, the Trainer's default. A head is trained in float32 though the base has fewer bits, as PEFT does with ``A`` and
    ``B``, and rounded to the base's type in the end; biases of the base (``bias=`` of PEFT) are not.

    References
    ----------
    TLoRA, arXiv 2604.18124: ``W`` and ``A`` stay fixed, ``B`` is trained.
    """
    check_numbers(learning_rate, epochs, batch_size, evaluation_limit)
    batch_size, seed = int(batch_size), int(seed)  # perhaps of NumPy, which the Trainer does not take
    check_trainable(model)
    phases = TrainingPhases(a_learning_rate, head_learning_rate, freeze_a_after)
    phases.check(model)
    data = _as_task(task, model)
    checkpoint = checkpoint_to_resume(resume, output_dir, model)
    validation = _validation(data, evaluation_limit)
    recorder, callbacks = _with_recorder(callbacks)
    recipe = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size} | _without_secrets(arguments)
    recipe |= (
        {"evaluation_limit": evaluation_limit, "resume": checkpoint} | _circumstances(data, model) | phases.record()
    )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_scratch()) if output_dir is None else output_dir
        ours = {
            "learning_rate": learning_rate,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
            "seed": seed,
            "output_dir": os.fspath(folder),
            "resume_from_checkpoint": checkpoint,
            "disable_tqdm": True,  # the bar is ours
        }
        settings = training_arguments(ours, arguments, validation is not None, output_dir is not None, model)
        record = same_training(checkpoint, settings, data.train, model, phases.record())
        stack.enter_context(restored(model))
        trainer = AdapterTrainer(
            model,
            progress,
            [*callbacks, MarkWhole(record)],
            optimizer,
            phases,
            args=settings,
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=validation,
        )
        before = _evaluate(data, model, evaluation_limit, progress)
        set_seed(seed)  # whatever the evaluation drew
        ending = _train(trainer, model, checkpoint)
        after = {} if ending.cut_short else _evaluate_after(data, model, evaluation_limit, progress)
    _warn(ending, trainer, lora_modules(model))
    return TrainingRun(
        history=history_frame(trainer.state.log_history),
        module_history=recorder.to_frame(),
        before=before,
        after=after,
        seconds=ending.seconds,
        interrupted=ending.interrupted,
        diverged=ending.diverged,
        meta=Meta(model.config._name_or_path, data.name, _json(recipe), seed, len(data.train)),
        **_adapter(model, record),
    )


@dataclass(frozen=True)
class _Ending:
    """How training ended; ``reason`` is empty where all steps were done."""

    seconds: float
    reason: str = ""
    held: int = 0  # the step whose adapter the run has
    interrupted: bool = False
    diverged: bool = False
    cut_short: bool = False  # at once, so that nobody waits for an evaluation


def _train(trainer: AdapterTrainer, model: PeftModel, checkpoint: str | None) -> _Ending:
    started = time.perf_counter()
    reason, diverged, cut_short = "", False, False
    try:
        with heads_in_float32(model), torch.inference_mode(False), torch.enable_grad():
            trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        reason, cut_short = "training was interrupted", True
    except NotFinite as error:
        reason, diverged, cut_short = str(error), True, True
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second interrupt: the run is kept all the same
            trainer.end()
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if not reason and done < planned:
        reason = "a callback stopped training"
    best = trainer.best_step if trainer.args.load_best_model_at_end and not cut_short else None
    if reason:
        holds = f"that of step {best}, the best" if best else "the adapter as it was then"
        reason += f" after {done} of {planned} steps; the run holds {holds}"
    seconds = time.perf_counter() - started
    return _Ending(seconds, reason, best or done, bool(reason) and not diverged, diverged, cut_short)


def _warn(ending: _Ending, trainer: AdapterTrainer, modules: Mapping[str, LoraModule]) -> None:
    planned = trainer.state.max_steps
    advice = f" (a learning rate below {trainer.args.learning_rate:g} may help)" if ending.diverged else ""
    if ending.reason and not any(getattr(one, "stopped", False) for one in trainer.callback_handler.callbacks):
        warnings.warn(ending.reason + advice, stacklevel=3)
    # The first warm-up step has a learning rate of zero, so a run that was stopped there proves nothing.
    zero = [name for name, module in modules.items() if module.b.requires_grad and not module.b.any()]
    if zero and ending.held > min(trainer.args.get_warmup_steps(planned), planned - 1):
        more = f" and {len(zero) - 3} more" if len(zero) > 3 else ""
        warnings.warn(
            f"B is still zero after {ending.held} steps in {', '.join(zero[:3])}{more}: no gradient reached it, or "
            "the learning rate was zero (a single step is all warm-up: pass warmup_steps=0)",
            stacklevel=3,
        )


def _as_task(task: Task | Dataset, model: PeftModel) -> Task | Rows:
    if isinstance(task, Dataset):
        base = model.get_base_model()
        more = set(task.column_names) - {"input_ids", "attention_mask", "labels"}
        taken = tuple(name for name in sorted(more) if has_argument(base, name))
        reads = bool(getattr(base.config, "is_encoder_decoder", False))
        task = Rows(task, getattr(model.config, "pad_token_id", None) or 0, int(is_causal(base)), taken, reads)
    missing = [name for name in ("name", "train", "validation", "collate") if not hasattr(task, name)]
    if missing:
        raise TypeError(
            f"train() takes a task from tlora.load_task() or a datasets.Dataset of tokenized rows, got "
            f"{type(task).__name__} (it has no {missing[0]})"
        )
    if not len(task.train):
        raise ValueError(f"task {task.name!r} has no training samples: pass at least one")
    has_head = any(isinstance(module, ModulesToSaveWrapper) for module in model.modules())
    if np.ndim(task.train[0]["labels"]) == 0 and not has_head:
        warnings.warn(
            "the labels are classes, and no head is trained beside the adapter: one is sought beside the module that "
            f"base_model_prefix names, which {type(model.get_base_model()).__name__} has to say",
            stacklevel=3,
        )
    return task


def _validation(task: Task | Rows, limit: int | None) -> Dataset | None:
    rows = task.validation
    if rows is None or not len(rows) or limit == 0:
        return None
    return evenly_spaced_rows(rows, limit or LOSS_SAMPLES)


def _with_recorder(callbacks: Callbacks) -> tuple[ModuleRecorder, list[TrainerCallback]]:
    given = [callbacks] if isinstance(callbacks, TrainerCallback | type) else callbacks
    chosen = [callback() if isinstance(callback, type) else callback for callback in given]
    for callback in chosen:
        if isinstance(callback, ModuleRecorder):
            return callback, chosen
    recorder = ModuleRecorder()
    return recorder, [recorder, *chosen]


def _without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A run is shown, and uploaded with the adapter."""
    return {name: value for name, value in arguments.items() if not name.endswith("_token")}


def _circumstances(task: Task | Rows, model: PeftModel) -> dict[str, Any]:
    """What a recipe says beside the arguments, seen before the training."""
    is_classifier = model.peft_config[model.active_adapter].task_type == TaskType.SEQ_CLS
    modules = list(lora_modules(model).values())
    return {
        "evaluated_on": _evaluated_on(task),
        "attach": attach_options(model) or NOT_ATTACHED,
        "b_began_at_zero": not any(module.b.any() for module in modules),
        "num_labels": model.config.num_labels if is_classifier else None,
    }


def _evaluated_on(task: Task | Rows) -> str:
    """The split that the metrics are taken on; empty where nothing is held out."""
    if isinstance(task, Rows):
        return "train"
    return next((name for name in ("test", "validation") if len(getattr(task, name, None) or ())), "")


def _evaluate(task: Task | Rows, model: PeftModel, limit: int | None, progress: bool) -> dict[str, float]:
    if limit == 0:
        return {}
    if isinstance(task, Rows):
        return {"train_loss": task.loss(model, limit or LOSS_SAMPLES)}
    split = _evaluated_on(task)
    return task.evaluate(model, split, limit, progress=progress) if split else {}


def _evaluate_after(task: Task | Rows, model: PeftModel, limit: int | None, progress: bool) -> dict[str, float]:
    try:
        return _evaluate(task, model, limit, progress)
    except KeyboardInterrupt:
        warnings.warn("the evaluation after training was interrupted: run.after is empty", stacklevel=3)
        return {}


def _adapter(model: PeftModel, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps of the model, of whose base the record of its training has the fingerprints."""
    prints = {name: torch.tensor(values) for name, values in record[BASE].items()}
    modules, config = lora_modules(model), model.peft_config[model.active_adapter]
    return {
        "adapter": {name: t.detach().cpu().clone().contiguous() for name, t in adapter_tensors(model).items()},
        "adapter_config": adapter_config(model),
        "ranks": {name: module.rank for name, module in modules.items()},
        "scalings": {name: float(module.scaling) for name, module in modules.items()},
        # where the start has rewritten the base, nobody else has that base
        "fingerprints": {} if rewrites_base(config.to_dict()) else prints,
        "frozen_a": record[FROZEN_A],
        "trainable_parameters": trainable_parameters(model),
    }


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))
