"""The Trainer of transformers, adapted to adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper, load_peft_weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tlora.adapters.files import ARGUMENTS
from tlora.adapters.lora_layers import remember_trainable
from tlora.models.forward import IGNORED, can_restrict_logits, fit_batch, keep_labeled_positions, restrict_logits
from tlora.models.sharding import is_sharded
from tlora.models.targets import is_causal
from tlora.models.weights import intact
from tlora.training.checkpoints import active_adapter_folder, warn_if_not_written
from tlora.training.phases import TrainingPhases
from tlora.utils.devices import on_host
from tlora.utils.logs import filtered_logs
from tlora.utils.progress import is_shown, progress_bar
from tlora.utils.reproducibility import temporary_seed

_NOTES = ("Warning: The following arguments do not match", "mtime may not be reliable")
# Attributes that the Trainer, accelerate and gradient checkpointing set on modules.
_ATTRIBUTES = (
    "training",
    "forward",
    "_original_forward",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_require_grads_hook",
    "_require_grads_hooks",
    "_ddp_params_and_buffers_to_ignore",
)


MakeOptimizer = Callable[[PeftModel, float], torch.optim.Optimizer]
"""A function from an adapted model and the peak learning rate to an optimizer."""

_SHORT = (torch.float16, torch.bfloat16)


class NotFinite(FloatingPointError):
    """The loss or the gradient of a step is NaN or infinite; raised before the optimizer uses it."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(f"the {what} became {value} at step {step}")


class AllStepsDone(Exception):
    """A resumed training has no step left; the Trainer would take one more before it looks."""


class AdapterTrainer(Trainer):
    """A Trainer that trains exactly the parameters that required a gradient when it was created.

    It stops before a loss or gradient that is not finite reaches the weights, writes checkpoints without asking a hub
    about the base model, and continues if one cannot be written.
    """

    def __init__(
        self,
        model: PeftModel,
        progress: bool,
        callbacks: list[Any],
        make_optimizer: MakeOptimizer | None,
        phases: TrainingPhases,
        **kwargs: Any,
    ) -> None:
        self._steps = _CheckSteps()
        if can_restrict_logits(model.get_base_model()):
            # here, before a batch is on a GPU, where reading its labels would block the host
            kwargs["data_collator"] = partial(_collate, kwargs["data_collator"])
        super().__init__(model=model, callbacks=[*phases.callbacks(), *callbacks, self._steps], **kwargs)
        # Causal models divide their losses by the tokens of a whole step; for means of a batch compute_loss does it.
        self._means = not is_causal(model.get_base_model())
        self.model_accepts_loss_kwargs |= self._means
        self._adapted = model
        self._make_optimizer = make_optimizer
        self._phases = phases
        for config in _configs(model):
            config.use_cache = self.args.use_cache  # the Trainer sets the outermost only
        self._freeze_again = remember_trainable(model)
        self.remove_callback(PrinterCallback)  # which the Trainer adds because its own bars are off
        if is_shown(progress):
            self.add_callback(_Progress)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, after freezing again what loading a checkpoint may have made trainable."""
        self._freeze_again()
        if self.optimizer is None and self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(self._adapted, self.args.learning_rate)
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        self._phases.set_rates(optimizer, self._adapted)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward of one batch, and keep its loss to be checked before the optimizer's step."""
        loss = super().training_step(*args, **kwargs)
        self._steps.losses.append(loss.detach())
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the model's own loss, as a mean over all labels of a step, computing logits only for labels."""
        batch = restrict_logits(self._adapted, fit_batch(self._adapted, inputs))
        if not self._means:
            return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, batch, True)
        if num_items_in_batch is not None:
            # Gradients are averaged over processes, and labels counted over all of them.
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * (inputs["labels"].ne(IGNORED).sum() * processes / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """Over a sharded base, average only the gradients of the adapter by DDP; accelerate would refuse the shards."""
        wrapped = super()._wrap_model(model, training, dataloader)
        if not training or wrapped is not self._adapted or not is_sharded(model):
            return wrapped
        model = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        handler = self.accelerator.ddp_handler
        return DistributedDataParallel(model, **({} if handler is None else handler.to_kwargs()))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return losses on the validation samples, without effect on the random numbers of training."""
        with temporary_seed():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; leave sharded models to the Trainer."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            # By default PEFT asks the hub whether the vocabulary of the base was resized.
            self._adapted.save_pretrained(output_dir or str(self.args.output_dir), save_embedding_layers=False)

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint that was written: a better step may have been evaluated but not saved."""
        folder = self.state.best_model_checkpoint
        return int(folder.rpartition("-")[2]) if folder else None

    def _load_best_model(self) -> None:
        """Load the best checkpoint into the adapter that was trained; the Trainer always loads ``default``."""
        folder = active_adapter_folder(Path(str(self.state.best_model_checkpoint)), self._adapted)
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            tensors = load_peft_weights(str(folder), device="cpu")
            set_peft_model_state_dict(self._adapted, tensors, adapter_name=self._adapted.active_adapter)
        else:  # sharded, or nothing was saved
            super()._load_best_model()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        with warn_if_not_written(folder):
            (folder / ARGUMENTS).unlink(missing_ok=True)  # until it is written again, it is incomplete
            super()._save_checkpoint(*args, **kwargs)

    def end(self) -> None:
        """Call ``on_train_end`` if an exception kept the Trainer from doing so."""
        if self.is_in_train and self.callback_handler.train_dataloader is not None:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False


class _CheckSteps(TrainerCallback):
    """Raise at a loss or gradient that is not finite; once a step, since a GPU has to finish its work for it.

    Raise before a step that is one too many, too.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise AllStepsDone

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        values = [("loss", loss) for loss in self.losses]
        self.losses = []
        # in float16 infinite gradients are normal, and the loss scaler skips the step
        if getattr(kwargs["optimizer"], "scaler", None) is None:
            gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
            values.append(("gradient norm", torch.nn.utils.get_total_norm(gradients)))
        for (what, _), value in zip(values, on_host(tensor for _, tensor in values), strict=True):
            if not torch.isfinite(value):
                raise NotFinite(what, value.item(), state.global_step + 1)


def _collate(collate: Callable[[list[Any]], dict[str, Any]], rows: list[Any]) -> dict[str, Any]:
    """Collate rows into a batch that requests logits only for labeled tokens."""
    batch = collate(rows)
    return keep_labeled_positions(batch) if batch["labels"].ndim > 1 else batch


class _Progress(ProgressCallback):
    """The Trainer's progress bars, named like our others and with the losses at their end."""

    def __init__(self) -> None:
        super().__init__()
        self._losses: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {"desc": "training", "unit": "step", "dynamic_ncols": True}
        self.training_bar = progress_bar(total=state.max_steps, show=state.is_world_process_zero, **options)
        self.current_step = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.prediction_bar is None and state.is_world_process_zero:
            options: dict[str, Any] = {"desc": "validation", "unit": "batch", "dynamic_ncols": True, "leave": False}
            self.prediction_bar = progress_bar(total=len(eval_dataloader), show=True, **options)
        if self.prediction_bar is not None:
            self.prediction_bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._losses |= {name: f"{logs[name]:.4g}" for name in ("loss", "eval_loss") if name in logs}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self._losses)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_evaluate(args, state, control)  # closes the bar of an evaluation that was interrupted
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None


def without_notes() -> contextlib.AbstractContextManager[None]:
    """Leave out what the Trainer says about our own settings inside: the user can do nothing about it.

    It compares `eval_steps` and `save_steps` with those of a checkpoint, where our shares of the steps are numbers, and
    doubts the times of checkpoints that were written within a second.
    """
    loggers = "transformers.trainer", "transformers.trainer_utils"
    return filtered_logs(lambda record: not record.getMessage().startswith(_NOTES), *loggers)


@contextlib.contextmanager
def restore_modules(model: PeftModel) -> Iterator[None]:
    """Restore modes, hooks, trainable parameters and caches when the block ends, however it ends."""
    kept = [
        (module, {name: vars(module)[name] for name in _ATTRIBUTES if name in vars(module)}, set(module._forward_hooks))
        for module in model.modules()
    ]
    restore = remember_trainable(model)
    caching = [(config, config.use_cache) for config in _configs(model)]
    try:
        with intact(model):
            yield
    finally:
        for module, values, hooks in kept:
            for name in _ATTRIBUTES:
                vars(module).pop(name, None)
            vars(module).update(values)
            for hook in set(module._forward_hooks) - hooks:
                del module._forward_hooks[hook]
        restore()
        model.zero_grad()
        for config, use_cache in caching:
            config.use_cache = use_cache


def _configs(model: PeftModel) -> list[Any]:
    """Return all configs that may enable a cache: the decoder of an encoder-decoder model has its own."""
    configs = {id(c): c for c in (getattr(module, "config", None) for module in model.modules())}
    return [config for config in configs.values() if hasattr(config, "use_cache")]


@contextlib.contextmanager
def heads_in_float32(model: nn.Module) -> Iterator[None]:
    """Train modules that are saved whole, such as a head, in float32 if the base has fewer bits.

    In bfloat16, small steps of AdamW are rounded away. PEFT converts only ``A`` and ``B``. Inputs and outputs of the
    modules keep their type, and parameters return to it when the block ends.
    """
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    heads = [copy for wrapper in wrappers for copy in wrapper.modules_to_save.values()]
    dtypes = [next((p.dtype for p in h.parameters() if p.requires_grad and p.dtype in _SHORT), None) for h in heads]
    with contextlib.ExitStack() as stack:
        for head, dtype in zip(heads, dtypes, strict=True):  # tied weights are converted once
            if dtype is not None:
                _widen(head, dtype, stack)
        yield


def _widen(module: nn.Module, dtype: torch.dtype, stack: contextlib.ExitStack) -> None:
    """Let a module compute in float32, with inputs and outputs of its own type, until the stack is closed."""

    def cast_inputs(_: Any, args: Any, kwargs: Any) -> Any:
        return _cast(args, torch.float32), _cast(kwargs, torch.float32)

    stack.callback(module.register_forward_pre_hook(cast_inputs, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(lambda _, __, out: _cast(out, dtype)).remove)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in _SHORT:
            stack.callback(_restore_dtype, tensor, tensor.dtype)
            tensor.data = tensor.data.float()


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Cast all floating-point tensors in a structure."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values)


def _restore_dtype(tensor: Tensor, dtype: torch.dtype) -> None:
    tensor.grad = None
    tensor.data = tensor.data.to(dtype)
