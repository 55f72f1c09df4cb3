"""A calibration pass and a training step of a model without weights: what they hold and compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from tlora.models.forward import accepts, most_tokens
from tlora.models.hooks import recording
from tlora.models.targets import FRESH_MODULES, Target, head_modules, target_modules
from tlora.simulation import Simulation, simulated
from tlora.utils.validation import positive_int

KINDS = ("B", "A and B")
"""What is trained: as TLoRA, as LoRA."""


@dataclass(frozen=True)
class Workload:
    """What is run through a model.

    Attributes
    ----------
    samples : int
        Calibration samples.
    length : int
        Tokens of each.
    batch_size : int
        Samples at once, in calibration and in training.
    labels : int
        Labelled tokens of each sample.

    Raises
    ------
    ValueError
        If a number is not positive.
    """

    samples: int
    length: int
    batch_size: int
    labels: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            positive_int(value, name)


@dataclass(frozen=True)
class Rehearsal:
    """What was seen of a model.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each target module.
    shared : dict of str
        For each module the first one that reads the same input.
    parameters : int
        Of the model.
    head : int
        Of a classifier's head, which is trained beside the adapter.
    weights : int
        Bytes of parameters and buffers.
    pass_bytes : int
        Most bytes beside the weights in the forward and backward pass of a batch that is calibrated on.
    pass_flops : int
        Its floating-point operations.
    step_bytes : dict of int
        Most bytes beside the weights in a training step, adapter and gradients included; the optimiser's states are
        not. By what is trained: ``"B"``, ``"A and B"``.
    step_flops : dict of int
        Its floating-point operations.
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    head: int
    weights: int
    pass_bytes: int
    pass_flops: int
    step_bytes: dict[str, int]
    step_flops: dict[str, int]


def rehearse(
    architecture: Any,
    config: PretrainedConfig,
    dtype: torch.dtype,
    select: str | Iterable[str] | None,
    work: Workload,
    rank: int,
) -> Rehearsal:
    """Run a model's code for one calibration batch and one training step of each kind, on tensors without data.

    Parameters
    ----------
    architecture : type
        An auto class of transformers.
    config : transformers.PretrainedConfig
        Of the model.
    dtype : torch.dtype
        Of its weights.
    select : str or list of str, optional
        Target modules.
    work : Workload
        Sizes.
    rank : int
        Of the adapter, the same everywhere.

    Raises
    ------
    ValueError
        If a sample is longer than the model reads, or has more labels than tokens where these are the same ones.

    Warns
    -----
    UserWarning
        If the config asks for quantised weights, which are counted as they would be without.
    """
    if getattr(config, "quantization_config", None):
        warnings.warn(
            f"the config asks for quantised weights, and the plan counts them in {dtype}: they will take less",
            stacklevel=3,
        )
    with simulated() as simulation:
        model = architecture.from_config(config, dtype=dtype).eval()
        setattr(model, FRESH_MODULES, ())  # what a checkpoint lacks is not known
        _check_length(model, work)
        targets = target_modules(model, select)
        weights = simulation.live.now
        pass_bytes, pass_flops, shared = _calibration_pass(simulation, model, targets, work)
        steps = {kind: _training_step(simulation, model, targets, work, rank, kind == "B") for kind in KINDS}
        return Rehearsal(
            shapes={name: (target.d_out, target.d_in) for name, target in targets.items()},
            shared=shared,
            parameters=sum(p.numel() for p in model.parameters()),
            head=sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters()),
            weights=weights,
            pass_bytes=pass_bytes - weights,
            pass_flops=pass_flops,
            step_bytes={kind: peak - weights for kind, (peak, _) in steps.items()},
            step_flops={kind: flops for kind, (_, flops) in steps.items()},
        )


def _check_length(model: Any, work: Workload) -> None:
    """Refuse more tokens than positions that were learnt: a table without data takes any index."""
    length = work.length
    if work.labels > length and not model.config.is_encoder_decoder:
        raise ValueError(f"labels={work.labels} of {length} tokens: a sample has no more labels than tokens")
    most, table = most_tokens(model) or (length, "")
    if length > most:
        raise ValueError(f"length={length}: the model reads at most {most} tokens, by {table}: ask for fewer")


def _calibration_pass(
    simulation: Simulation, model: Any, targets: dict[str, Target], work: Workload
) -> tuple[int, int, dict[str, str]]:
    shared: dict[str, str] = {}
    with recording(model, targets, lambda name, inputs, gradients: None) as recorder:

        def act() -> None:
            loss = _loss(model, work)
            first: dict[int, str] = {}
            for name in targets:
                shared[name] = first.setdefault(id(recorder.inputs[name][0]), name)
            loss.backward()
            recorder.clear()

        peak, flops = simulation.measure(act)
    return peak, flops, shared


def _training_step(
    simulation: Simulation, model: Any, targets: dict[str, Target], work: Workload, rank: int, freeze_a: bool
) -> tuple[int, int]:
    """A step with LoRA on every target, as PEFT computes it: in float32, beside a layer of whatever precision."""
    model.requires_grad_(False)
    model.train()
    _keep_layers(model)
    handles = [
        model.get_submodule(name).register_forward_hook(_lora(target, min(rank, target.d_in, target.d_out), freeze_a))
        for name, target in targets.items()
    ]
    try:
        return simulation.measure(lambda: _loss(model, work).backward())
    finally:
        for handle in handles:
            handle.remove()
        model.eval()


def _keep_layers(model: nn.Module) -> None:
    """Have no layer left out at random (LayerDrop): all of them are the most that a step takes.

    Models ask a tensor whether to, and one without data has no answer; some ask even where the chance is zero.
    """
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.training = False  # of its own code alone: its layers drop out as they do


def _lora(target: Target, rank: int, freeze_a: bool) -> Callable[..., Tensor]:
    a = torch.zeros(rank, target.d_in, requires_grad=not freeze_a)
    b = torch.zeros(target.d_out, rank, requires_grad=True)

    def update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output + functional.linear(functional.linear(args[0].to(a.dtype), a), b)).to(output.dtype)

    return update


def _loss(model: Any, work: Workload) -> Tensor:
    """The summed loss of a batch of the workload's size; of a causal model from the labelled tokens alone."""
    ids = torch.zeros(work.batch_size, work.length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(work.batch_size, work.labels, dtype=torch.long)
    if model.config.is_encoder_decoder:
        inputs["labels"] = labels
    elif accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = work.labels
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), ids[:, 0], reduction="sum")
    return functional.cross_entropy(logits[:, : work.labels].float().transpose(1, 2), labels, reduction="sum")
