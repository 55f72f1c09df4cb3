"""Estimate what calibrating and training a model will take, from its config alone."""

from __future__ import annotations

import contextlib
import copy
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from tlora.allocation.footprint import BYTES, Footprint, footprint
from tlora.calibration.calibration import Options
from tlora.models.forward import accepts, most_tokens
from tlora.models.hooks import recording
from tlora.models.loading import architecture_of, floating_dtype, load_config
from tlora.models.targets import NEWLY_INITIALIZED, Target, head_modules, target_modules
from tlora.numerics.linalg import OVERSAMPLING
from tlora.results import Meta, Result
from tlora.utils.defaults import BATCH_SIZE
from tlora.utils.validation import as_names, positive, positive_int

KINDS = ("B", "A and B")
"""What is trained: as TLoRA, as LoRA."""


@dataclass(frozen=True, repr=False, eq=False)
class ResourceEstimate(Result):
    """Memory and time of each stage, before any weight is loaded.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each target module.
    shared : dict of str
        For each module the first one that reads the same input, whose covariance it shares.
    parameters : int
        Of the model.
    trainable : dict of int
        Trained parameters of a uniform allocation, a classifier's head included: ``"B"`` alone, as TLoRA;
        ``"A and B"``, as LoRA.
    bytes : dict of int
        Most memory at once, by stage, the weights included.
    flops : dict of float
        Floating-point operations, by stage.
    speed : float or None
        Floating-point operations a second that seconds are counted at.
    memory : int or None
        Bytes that there are.
    meta : Meta
        Model, and what was asked for.
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    trainable: dict[str, int]
    bytes: dict[str, int]
    flops: dict[str, float]
    speed: float | None
    memory: int | None
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "stage": "what is done",
        "gigabytes": "most memory at once (1e9 bytes), weights included",
        "teraflops": "1e12 floating-point operations: of training, those of one step",
        "seconds": "at the speed that was given; NaN without",
        "fits": "whether there is memory enough; None where it was not said how much there is",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row a stage; see ``columns``."""
        stages = list(self.bytes)
        work = [self.flops.get(stage, 0.0) for stage in stages]
        return pd.DataFrame(
            {
                "stage": stages,
                "gigabytes": [self.bytes[stage] / 1e9 for stage in stages],
                "teraflops": [flops / 1e12 for flops in work],
                "seconds": [float("nan") if self.speed is None else flops / self.speed for flops in work],
                "fits": [None if self.memory is None else self.bytes[stage] <= self.memory for stage in stages],
            }
        )

    def _summary(self) -> str:
        most = max(self.bytes.values())
        return (
            f"{self.parameters:,} parameters, {len(self.shapes)} modules with {len(set(self.shared.values()))} "
            f"distinct inputs of {self.meta.model}, at most {most / 1e9:.3g} GB"
        )

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        names = ("shapes", "shared", "parameters", "trainable", "bytes", "flops", "speed", "memory")
        return {}, {name: getattr(self, name) for name in names}

    @classmethod
    def _unpack(cls, tensors: dict[str, Tensor], values: dict[str, Any], meta: Meta) -> Self:
        return cls(**values, meta=meta)


def estimate(
    model: str | os.PathLike[str] | PretrainedConfig,
    rank: int = 8,
    *,
    samples: int = 32,
    length: int = 512,
    batch_size: int = BATCH_SIZE,
    labels: int | None = None,
    sketch_size: int = 256,
    dtype: str = "float32",
    num_labels: int | None = None,
    target_modules: str | Iterable[str] | None = None,
    speed: float | None = None,
    memory: float | None = None,
) -> ResourceEstimate:
    """What calibration, subspaces and training will take, from the model's config alone.

    Nothing is downloaded but the config, and no weight is made: the model's own code is run on tensors that have shapes
    and no data, and what would be alive at each moment is added up.

    Parameters
    ----------
    model : str, path-like or transformers.PretrainedConfig
        As for `tlora.load_model`, or a config.
    rank : int
        Nominal rank.
    samples : int
        Calibration samples.
    length : int
        Tokens of a sample.
    batch_size : int
        Samples at once.
    labels : int, optional
        Labelled tokens of a sample, for which there are logits; all by default.
    sketch_size : int
        Columns of a sketch of a covariance.
    dtype : str
        Of the weights.
    num_labels : int, optional
        Classes, where the model is to be a classifier.
    target_modules : str or iterable of str, optional
        As for `tlora.calibrate`.
    speed : float, optional
        Floating-point operations a second, for the seconds; ``tlora.estimate.matmul_speed`` measures that of a device.
    memory : float, optional
        Bytes that there are, for what fits.

    Returns
    -------
    ResourceEstimate

    Raises
    ------
    ValueError
        If a number is out of range, the samples are longer than the learned positions of the model, or it has no
        target modules.

    Warns
    -----
    UserWarning
        If the config asks for quantised weights, which are counted as they would be without.

    Notes
    -----
    Memory is that of tensors: a process has its libraries beside them, a few hundred megabytes. Ranks are counted as
    uniform; what sensitivity shares out differently sums to the same. Time is that of products at the given speed,
    a lower bound.
    """
    positive_int(rank, "rank")
    for what, value in (("speed", speed), ("memory", memory)):
        if value is not None:
            positive(what, value)
    work = Workload(samples, length, batch_size, length if labels is None else labels)
    config = copy.deepcopy(model) if isinstance(model, PretrainedConfig) else load_config(model)
    name = config._name_or_path if isinstance(model, PretrainedConfig) else str(model)
    precision = floating_dtype(dtype)
    asked = asdict(work) | {"rank": rank, "sketch_size": sketch_size, "dtype": dtype, "num_labels": num_labels}
    target_modules = as_names(target_modules)
    seen = rehearse(architecture_of(config, num_labels), config, precision, target_modules, work, rank)
    most = sum(min(shape) for shape in seen.shapes.values()) // len(seen.shapes)
    if rank > most:
        raise ValueError(f"rank={rank} is beyond the matrices of the {len(seen.shapes)} modules: give at most {most}")
    adapters = {kind: footprint(seen.shapes, dict.fromkeys(seen.shapes, rank), freeze_a=kind == "B") for kind in KINDS}
    kept = Options(covariance="sketch", sketch_size=sketch_size)
    return ResourceEstimate(
        shapes=seen.shapes,
        shared=seen.shared,
        parameters=seen.parameters,
        trainable={kind: adapter.trainable_parameters + seen.head for kind, adapter in adapters.items()},
        bytes=_bytes(seen, adapters, kept, _width(rank), samples),
        flops=_flops(seen, work, kept, _width(rank)),
        speed=speed,
        memory=None if memory is None else int(memory),
        meta=Meta(name or type(config).__name__, recipe=asked | {"target_modules": target_modules}, samples=samples),
    )


def _width(rank: int) -> int:
    """Directions that subspaces are computed up to: allocations give few modules more than four times the nominal."""
    return 4 * rank


def _bytes(seen: Rehearsal, adapters: dict[str, Footprint], kept: Options, width: int, samples: int) -> dict[str, int]:
    distinct = [seen.shapes[name][1] for name in set(seen.shared.values())]
    whole = BYTES * sum(d**2 for d in distinct)
    sketched = BYTES * (
        sum(d * kept.sketch_size if kept.is_sketched(d) else d**2 for d in distinct)
        + sum(d * kept.sketch_size for d in set(distinct) if kept.is_sketched(d))  # what sketches are made with
    )
    whole += BYTES * sum(d * min(samples, d) for d in distinct)  # the samples' means
    sketched += BYTES * sum(d * min(samples, kept.sketch_size if kept.is_sketched(d) else d) for d in distinct)
    bases = BYTES * sum(min(width, *shape) * shape[1] for shape in seen.shapes.values())
    found = {
        "weights": seen.weights,
        "calibration, covariances whole": seen.weights + seen.pass_bytes + whole,
        "calibration, covariances sketched": seen.weights + seen.pass_bytes + sketched,
        "subspaces": seen.weights + whole + bases,
    }
    for kind, adapter in adapters.items():
        head = 4 * BYTES * seen.head  # its float32 copy, gradient and two states
        found[f"training {kind}"] = seen.weights + seen.step_bytes[kind] + adapter.optimiser_bytes + head
    return found


def _flops(seen: Rehearsal, work: Workload, kept: Options, width: int) -> dict[str, float]:
    tokens = work.samples * work.length
    passes = seen.pass_flops * work.samples / work.batch_size
    scores = sum(2.0 * tokens * rows * columns for rows, columns in seen.shapes.values())
    distinct = [seen.shapes[name][1] for name in set(seen.shared.values())]
    whole = sum(1.0 * tokens * d**2 for d in distinct)  # one triangle
    sketched = sum(
        4.0 * tokens * d * kept.sketch_size if kept.is_sketched(d) else 1.0 * tokens * d**2 for d in distinct
    )
    found = {
        "calibration, covariances whole": passes + scores + whole,
        "calibration, covariances sketched": passes + scores + sketched,
        "subspaces": sum(_subspace_flops(*shape, width + OVERSAMPLING) for shape in seen.shapes.values()),
    }
    return found | {f"training {kind}": float(flops) for kind, flops in seen.step_flops.items()}


def _subspace_flops(rows: int, columns: int, width: int) -> float:
    """Four products with ``W C`` and its transpose, two bases made orthogonal, and decompositions of small cores.

    What is done in float64 or in small pieces counts by its time, as measured beside large float32 products on a CPU.
    """
    products = 16.0 * columns * (rows + columns) * width
    orthogonal = 60.0 * (rows + columns) * width**2
    return products + orthogonal + 1000.0 * width**3


def matmul_speed(device: str | torch.device = "cpu", dtype: str = "float32", seconds: float = 0.5) -> float:
    """Floating-point operations a second that a device reaches in a product of 2,048 by 2,048 matrices.

    Parameters
    ----------
    device : str or torch.device
        Where to compute.
    dtype : str
        Of the matrices.
    seconds : float
        Time to measure for.

    Returns
    -------
    float
        Of the fastest product.
    """
    size = 2048
    a = torch.ones(size, size, device=device, dtype=floating_dtype(dtype))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


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
            f"the config asks for quantised weights, and the estimate counts them in {dtype}: they will take less",
            stacklevel=3,
        )
    with simulated() as simulation:
        model = architecture.from_config(config, dtype=dtype).eval()
        NEWLY_INITIALIZED[model] = ()  # what a checkpoint lacks is not known
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
    """Refuse more tokens than there are learned positions: a table without data takes any index."""
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


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive.

    Attributes
    ----------
    now : int
        At this moment.
    peak : int
        The most so far; may be set back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it made."""
        if func.__name__ == "_grouped_mm.default":  # without data torch has it for bfloat16 alone
            made = func(*tree_map(_short, args), **tree_map(_short, kwargs or {})).to(args[0].dtype)
        else:
            made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _short(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass
class Simulation:
    """Memory and floating-point operations of what is run inside of `simulated`."""

    live: LiveMemory
    counter: FlopCounterMode

    def measure(self, act: Callable[[], object]) -> tuple[int, int]:
        """Peak of memory while ``act`` runs, what was there before included, and the operations of its products.

        Parameters
        ----------
        act : callable
            Run once; what it returns is let go.
        """
        self.live.peak, before = self.live.now, self.counter.get_total_flops()
        act()
        return self.live.peak, self.counter.get_total_flops() - before


@contextlib.contextmanager
def simulated() -> Iterator[Simulation]:
    """Tensors made inside of the block have shapes and no data, whatever their size: nothing is computed.

    Notes
    -----
    Operations choose their kernels as on the CPU, so attention is never a matrix of tokens by tokens, which holds for
    GPUs too.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as live, FlopCounterMode(display=False) as counter:
        yield Simulation(live, counter)
