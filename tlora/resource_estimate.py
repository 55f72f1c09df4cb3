"""Estimate the memory and time of calibrating and training a model from its config alone."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from tlora.allocation.footprint import AS_BASE, BYTES, FULL, TRAINED_PARTS, uniform_footprints
from tlora.calibration.calibration import Options
from tlora.models.forward import has_argument, position_limit
from tlora.models.hooks import ObservationError, observe_gradients
from tlora.models.loading import choose_architecture, floating_dtype, load_config
from tlora.models.record import record_of
from tlora.models.simulation import Blocks, Simulation, group_blocks, keep_blocks, simulation_mode
from tlora.models.targets import Target, head_modules, output_embeddings
from tlora.models.targets import target_modules as select_targets
from tlora.numerics.linalg import OVERSAMPLING
from tlora.results import Meta, Result
from tlora.subspaces.task_subspaces import GROUP_BYTES
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE
from tlora.utils.validation import list_names, require_choice, require_positive, require_positive_int

CALIBRATION = "calibration"

STAGES = {
    "weights": "",
    "calibration, covariances whole": CALIBRATION,
    "calibration, covariances sketched": CALIBRATION,
    "subspaces": "",
} | {f"training {kind}": kind for kind in (*TRAINED_PARTS, AS_BASE, FULL)}
"""The stages, and the kind of step that each runs, if it runs the model."""

OPTIMIZER_STATES = {
    "adamw_torch": (2, 0),
    "adamw_bnb_8bit": (0, 2),
    "paged_adamw_32bit": (0, 0),
    "paged_adamw_8bit": (0, 0),
    "sgd": (0, 0),
}
"""What optimizers keep on the GPU for a parameter: numbers of its own type, and bytes; paged states are on the host."""

QUANTIZED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a weight of a bitsandbytes base, by its bits: at 4 bits, every 64 weights share a float32 scale."""

NEEDS_ALL_BLOCKS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot run without some of their blocks."""

GPU_COUNTS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs to propose."""


@dataclass(frozen=True, repr=False, eq=False)
class ResourceEstimate(Result):
    """Memory and time of each stage, from `tlora.estimate`.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each target module.
    shared : dict of str
        For each module the first one that reads the same input, whose covariance it shares.
    parameters : int
        Parameters of the model.
    trainable : dict of int
        Trained parameters of a uniform allocation, including the head of a classifier: ``"B"`` alone, as TLoRA;
        ``"A and B"``, as LoRA.
    bytes : dict of int
        Peak memory of each stage, including the weights; of one GPU if there are several. ``"training B"`` is TLoRA,
        ``"training A and B"`` LoRA with PEFT's float32 adapter; if the base has fewer bits, ``"training A and B,
        adapter as base"`` is LoRA with an adapter of its type (``autocast_adapter_dtype=False`` in PEFT).
    activations : dict of int
        What a stage stores between the forward and the backward pass of a batch, in bytes; part of its peak.
    flops : dict of float
        Floating-point operations of each stage; of one GPU if there are several.
    speed : float or None
        Floating-point operations a second, for the seconds.
    memory : int or None
        Available bytes.
    choices : pandas.DataFrame
        Ways to train an adapter, with and without gradient checkpointing; with ``memory`` also how many samples at once
        fit, and of which length. What fits comes first, then what takes the least time. See ``choice_columns``.
    changes : list of dict
        If calibration with whole covariances, subspaces or LoRA (training ``A`` and ``B``) do not fit: what to change,
        the cheapest change first, each in addition to those before it. ``"change"`` names the argument, ``"costs"`` its
        price, ``"bytes"`` the peak memory with it. Even the last may not be enough.
    meta : Meta
        Model and arguments.

    Examples
    --------
    >>> estimate = tlora.estimate("base", rank=8, memory=1e6)
    >>> estimate
    ResourceEstimate(... parameters, 14 modules with 8 distinct inputs of base, at most ... GB)
    >>> list(estimate.to_frame().columns)
    ['stage', 'gigabytes', 'activations', 'teraflops', 'seconds', 'fits']
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    trainable: dict[str, int]
    bytes: dict[str, int]
    activations: dict[str, int]
    flops: dict[str, float]
    speed: float | None
    memory: int | None
    choices: pd.DataFrame
    changes: list[dict[str, Any]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "stage": "stage of the pipeline",
        "gigabytes": "peak memory (1e9 bytes), including weights; of one GPU if there are several",
        "activations": "part of the peak (1e9 bytes) that is stored from the forward to the backward pass",
        "teraflops": "1e12 floating-point operations; for training, of one step",
        "seconds": "time at the given speed; NaN without",
        "fits": "whether it fits in the given memory; None without",
    }
    choice_columns: ClassVar[dict[str, str]] = {
        "training": "trained part, as in the names of the stages",
        "gradient_checkpointing": "whether only the inputs of blocks are stored",
        "gigabytes": "peak memory (1e9 bytes) of a step with the given batch and length",
        "activations": "part of it that is stored from the forward to the backward pass",
        "fits": "whether this fits in the given memory; None without",
        "batch_size": "most samples of the given length that fit; NaN without memory",
        "length": "most tokens of a sample that fit in a batch of the given size; NaN without memory",
        "teraflops": "1e12 floating-point operations of a step with the given batch and length",
        "seconds": "time of this step at the given speed; NaN without",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row a stage; see ``columns``."""
        stages = list(self.bytes)
        operations = [self.flops.get(stage, 0.0) for stage in stages]
        return pd.DataFrame(
            {
                "stage": stages,
                "gigabytes": [self.bytes[stage] / 1e9 for stage in stages],
                "activations": [self.activations.get(stage, 0) / 1e9 for stage in stages],
                "teraflops": [flops / 1e12 for flops in operations],
                "seconds": [float("nan") if self.speed is None else flops / self.speed for flops in operations],
                "fits": [None if self.memory is None else self.bytes[stage] <= self.memory for stage in stages],
            }
        )

    def _summary(self) -> str:
        most = max(size for stage, size in self.bytes.items() if stage != f"training {FULL}")
        return (
            f"{self.parameters:,} parameters, {len(self.shapes)} modules with {len(set(self.shared.values()))} "
            f"distinct inputs of {self.meta.model}, at most {most / 1e9:.3g} GB"
        )


def estimate(
    model: str | os.PathLike[str] | PretrainedConfig,
    rank: int = RANK,
    *,
    samples: int = SAMPLES,
    length: int = LENGTH,
    batch_size: int = BATCH_SIZE,
    labels: int | None = None,
    sketch_size: int = SKETCH_SIZE,
    fisher: bool = False,
    dtype: str = DTYPE,
    bits: int | None = None,
    gradient_checkpointing: bool = False,
    optim: str = OPTIMIZER,
    gpus: int = 1,
    num_labels: int | None = None,
    target_modules: str | Iterable[str] | None = None,
    speed: float | None = None,
    memory: float | None = None,
) -> ResourceEstimate:
    """Estimate what calibration, subspaces and training will take, from the model's config alone.

    Only the config is downloaded, and no weight is allocated: the model's own code runs on tensors that have shapes but
    no data, and what is alive at each moment is added up. Of blocks that are alike only one and two are run; others
    count as the second.

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
        Samples at once, on each GPU.
    labels : int, optional
        Labeled tokens of a sample, for which there are logits; all by default.
    sketch_size : int
        Columns of a sketch of a covariance.
    fisher : bool
        Whether the calibration keeps what kind ``"fisher"`` needs, as in `tlora.calibrate`.
    dtype : str
        Type of the weights and activations.
    bits : {4, 8}, optional
        Bits of linear layers that bitsandbytes quantizes; by default as in the config. Full fine-tuning is counted
        without quantization.
    gradient_checkpointing : bool
        Whether training keeps only the inputs of blocks, and computes the rest twice.
    optim : {"adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"}
        The optimizer, as in ``transformers.TrainingArguments``.
    gpus : int
        Number of GPUs. With more than 1, FSDP2 shards the base (``fully_shard`` of each block and of the whole), and
        each GPU holds adapters and statistics. 0: everything is in the memory of the CPU.
    num_labels : int, optional
        Classes, if the model is to be a classifier.
    target_modules : str or iterable of str, optional
        As for `tlora.calibrate`.
    speed : float, optional
        Floating-point operations a second of one GPU, for the seconds; ``tlora.resource_estimate.matmul_speed``
        measures that of a device.
    memory : float, optional
        Bytes of one GPU, for what fits and what to change.

    Returns
    -------
    ResourceEstimate

    Raises
    ------
    ValueError
        If a number is out of range, the samples are longer than the positions of the model, the model cannot checkpoint
        gradients, or its code depends on the values of tensors.
    RuntimeError
        If a target module does not run, or no gradient reaches it.

    Warns
    -----
    UserWarning
        If the config asks for a quantization with other than 4 or 8 bits, which is not counted.

    Notes
    -----
    Memory is that of tensors; the libraries of a process take a few hundred megabytes more. Ranks are counted as
    uniform, and subspaces for kind ``"wc"``. Time is that of products at the given speed, a lower bound.

    Examples
    --------
    >>> estimate = tlora.estimate("base", rank=8, samples=16, length=64)
    >>> estimate.bytes["training B"] < estimate.bytes["training all weights"]
    True
    """
    for what, value in (("speed", speed), ("memory", memory)):
        if value is not None:
            require_positive(value, what)
    config = copy.deepcopy(model) if isinstance(model, PretrainedConfig) else load_config(model)
    name = config._name_or_path if isinstance(model, PretrainedConfig) else str(model)
    target_modules = list_names(target_modules)
    setup = Setup(
        samples=samples,
        length=length,
        batch_size=batch_size,
        labels=length if labels is None else labels,
        dtype=dtype,
        bits=_bits(config, dtype) if bits is None else bits,
        gradient_checkpointing=gradient_checkpointing,
        optim=optim,
        gpus=gpus,
        rank=rank,
        sketch_size=sketch_size,
        fisher=fisher,
    )
    with simulation_mode() as simulation:
        base = choose_architecture(config, num_labels).from_config(config, dtype=setup.precision).eval()
        record_of(base).newly_initialized = ()  # there is no checkpoint that could lack weights
        _check_length(base, setup)
        steps = SimulatedModel(simulation, base, select_targets(base, target_modules))
        largest = sum(min(shape) for shape in steps.shapes.values()) // len(steps.shapes)
        if rank > largest:
            raise ValueError(
                f"rank={rank} exceeds the matrices of the {len(steps.shapes)} modules: use at most {largest}"
            )
        stages = {name: kind for name, kind in STAGES.items() if kind != AS_BASE or kind in setup.adapters}
        simulated = {name: steps.run(setup, kind) for name, kind in stages.items() if kind}
        stage_bytes = {name: _stage_bytes(steps, setup, name) for name in stages}
        choices = _training_choices(steps, setup, memory, speed)
        changes = [] if memory is None else _propose_changes(steps, setup, memory)
    return ResourceEstimate(
        shapes=steps.shapes,
        shared={name: steps.shared[name] for name in steps.shapes},
        parameters=steps.parameters,
        trainable={
            kind: adapter.trainable_parameters + steps.head
            for kind, adapter in uniform_footprints(steps.shapes, rank).items()
        },
        bytes=stage_bytes,
        activations={name: step.stored for name, step in simulated.items()},
        flops={name: float(step.flops) for name, step in simulated.items()} | _stage_flops(steps, setup),
        speed=speed,
        memory=None if memory is None else int(memory),
        choices=choices,
        changes=changes,
        meta=Meta(
            name or type(config).__name__,
            recipe=asdict(setup) | {"num_labels": num_labels, "target_modules": target_modules},
            samples=samples,
        ),
    )


def _bits(config: PretrainedConfig, dtype: str) -> int | None:
    """Return the bits of quantized weights by a config."""
    quantization = getattr(config, "quantization_config", None)
    if not quantization:
        return None
    options = quantization if isinstance(quantization, dict) else quantization.to_dict()
    bits = 4 if options.get("load_in_4bit") else 8 if options.get("load_in_8bit") else options.get("bits")
    if bits in QUANTIZED_BYTES:
        return int(bits)
    warnings.warn(
        f"the config asks for a quantization that the estimate does not know: weights are counted in {dtype}",
        stacklevel=3,
    )
    return None


@dataclass(frozen=True)
class Setup:
    """How much data is run through a model, and how it is stored and trained: arguments of `estimate`."""

    samples: int
    length: int
    batch_size: int
    labels: int
    dtype: str
    bits: int | None
    gradient_checkpointing: bool
    optim: str
    gpus: int
    rank: int
    sketch_size: int
    fisher: bool

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch_size", "labels", "rank"):
            require_positive_int(getattr(self, name), name)
        floating_dtype(self.dtype)
        if self.bits is not None and self.bits not in QUANTIZED_BYTES:
            raise ValueError(f"bits={self.bits!r}: use 4 or 8, or leave it out")
        require_choice(self.optim, "optim", list(OPTIMIZER_STATES))
        require_positive_int(self.gpus, "gpus", 0)
        Options(covariance="sketch", sketch_size=self.sketch_size)

    @property
    def precision(self) -> torch.dtype:
        """Type of the weights."""
        return floating_dtype(self.dtype)

    @property
    def width(self) -> int:
        """Directions to compute: few modules get more than four times the nominal rank."""
        return 4 * self.rank

    @property
    def adapters(self) -> tuple[str, ...]:
        """Kinds of training with an adapter; one of the base's type differs if that is not float32."""
        return (*TRAINED_PARTS, AS_BASE) if self.precision != torch.float32 else TRAINED_PARTS

    def adapter_dtype(self, kind: str) -> torch.dtype:
        """Type of the adapter in a kind of training."""
        return self.precision if kind == AS_BASE else torch.float32

    def is_sketched(self, d: int) -> bool:
        """Whether a sketch is smaller than a covariance of this size."""
        return Options(sketch_size=self.sketch_size).is_wide(d)

    def state_bytes(self, itemsize: int) -> int:
        """Return the bytes of optimizer state for a parameter of this size."""
        numbers, fixed = OPTIMIZER_STATES[self.optim]
        return numbers * itemsize + fixed


class Weights(NamedTuple):
    """Bytes of a model's weights: all, those outside of its blocks, and the largest block."""

    total: int
    outside: int
    block: int

    def bytes_per_gpu(self, gpus: int) -> int:
        """Return the bytes on a GPU: its shard, what is outside of blocks, and two blocks, one of them prefetched."""
        return self.total if gpus <= 1 else self.total // gpus + self.outside + 2 * self.block


class Step(NamedTuple):
    """Bytes and operations of a step, in addition to the weights.

    ``peak`` includes the adapter and its gradient, but no gradients of the base and no states of an optimizer;
    ``stored`` are the bytes of it that are there between the forward and the backward pass.
    """

    peak: int
    stored: int
    flops: int


class SimulatedModel:
    """A model without data: its sizes, and its steps, each of which is run once.

    Attributes
    ----------
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each target module.
    shared : dict of str
        For each module the first one that reads the same input, after a step of calibration was run.
    parameters, head : int
        Parameters of the model, and of the head of a classifier.
    """

    def __init__(self, simulation: Simulation, model: Any, targets: dict[str, Target]) -> None:
        self.model = model
        model.config.use_cache = False  # as in calibration and training
        self.shapes = {name: (target.d_out, target.d_in) for name, target in targets.items()}
        self.shared: dict[str, str] = {}
        self.parameters = sum(p.numel() for p in model.parameters())
        self.head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
        self._simulation, self._targets, self._groups = simulation, targets, group_blocks(model)
        self._steps: dict[Any, Step] = {}
        self._weights: dict[int | None, Weights] = {}

    @property
    def distinct(self) -> list[int]:
        """Widths of the inputs of which there is a covariance."""
        return [self.shapes[name][1] for name in set(self.shared.values())]

    def weights(self, bits: int | None) -> Weights:
        """Return the bytes of the weights, if linear layers are quantized to so many bits."""
        if bits not in self._weights:
            self._weights[bits] = _weights(self.model, self._groups, bits)
        return self._weights[bits]

    def run(self, setup: Setup, kind: str) -> Step:
        """Run the model's code for a calibration batch (kind ``"calibration"``), or a training step of a kind."""
        sizes = (setup.batch_size, setup.length, setup.labels, setup.bits, setup.gradient_checkpointing)
        if (kind, *sizes) not in self._steps:
            self._steps[kind, *sizes] = self._run(setup, kind)
        return self._steps[kind, *sizes]

    def _run(self, setup: Setup, kind: str) -> Step:
        model, quantized = self.model, _quantized_layers(self.model) if setup.bits and kind != FULL else []
        if setup.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise ValueError(f"gradient_checkpointing=True: {type(model).__name__} does not support it, leave it out")

        def count() -> Step:
            running = {name for name, _ in model.named_modules()}
            present = {name: target for name, target in self._targets.items() if name in running}
            with contextlib.ExitStack() as undo:
                for layer in quantized:
                    undo.enter_context(_unpacking(layer))
                if kind == FULL:
                    return _full_step(self._simulation, model, setup)
                if kind != CALIBRATION:
                    return _adapter_step(self._simulation, model, present, setup, kind)
                step, inputs = _calibration_pass(self._simulation, model, present, setup)
                self.shared = inputs | self.shared
                return step

        try:
            step = count_all_blocks(self._groups, count)
        except ObservationError:
            raise
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be estimated: its code depends on the values of tensors, which have no "
                "data here"
            ) from error
        if kind == CALIBRATION:
            _share_as_second_block(self._groups, self.shared, self._targets)
        return step

    def block_peak(self, setup: Setup) -> int:
        """Return the peak, without weights and gradients, of a full step of one block of each kind."""
        with keep_blocks({blocks: 1 for blocks in self._groups}), contextlib.suppress(*NEEDS_ALL_BLOCKS):
            return _full_step(self._simulation, self.model, replace(setup, labels=1)).peak
        return 0


def _stage_bytes(steps: SimulatedModel, setup: Setup, name: str) -> int:
    """Return the peak memory of a stage."""
    kind = STAGES[name]
    if kind == FULL:
        step, shard, size = steps.run(setup, kind), steps.parameters // max(setup.gpus, 1), setup.precision.itemsize
        most = max(step.peak, shard * size + steps.block_peak(setup))  # with most activations, with all gradients
        return steps.weights(None).bytes_per_gpu(setup.gpus) + most + shard * setup.state_bytes(size)
    weights = steps.weights(setup.bits).bytes_per_gpu(setup.gpus)
    if name == "weights":
        return weights
    if name == "subspaces":
        return weights + _subspace_bytes(steps, setup)
    if kind == CALIBRATION:
        return weights + steps.run(setup, kind).peak + _statistics_bytes(steps, setup, name.endswith("sketched"))
    adapter = uniform_footprints(steps.shapes, setup.rank)[TRAINED_PARTS[kind != "B"]]
    states = setup.state_bytes(setup.adapter_dtype(kind).itemsize) * adapter.trainable_parameters
    head = (2 * BYTES + setup.state_bytes(BYTES)) * steps.head  # its float32 copy, the gradient and states
    return weights + steps.run(setup, kind).peak + states + head


def _statistics_bytes(steps: SimulatedModel, setup: Setup, sketched: bool) -> int:
    """Return the bytes of covariances and their means, of Fisher matrices, and of what sketches are drawn with."""
    fishers = [columns for _, columns in steps.shapes.values()] if setup.fisher else []
    wide, square = ([d for d in fishers if setup.is_sketched(d) == is_wide] for is_wide in (True, False))
    for d in steps.distinct:
        (wide if sketched and setup.is_sketched(d) else square).append(d)
    means = sum(d * min(setup.samples, d) for d in steps.distinct)
    return BYTES * (sum(d**2 for d in square) + setup.sketch_size * (sum(wide) + sum(set(wide))) + means)


def _subspace_bytes(steps: SimulatedModel, setup: Setup) -> int:
    """Return the bytes of covariances, float32 weights and iterates of the modules that are decomposed together.

    On the CPU, and if several GPUs share a base, it is one module at a time; on the CPU in addition to all statistics
    and bases.
    """
    width = setup.width + OVERSAMPLING
    is_copied = setup.bits is not None or setup.precision != torch.float32

    def iterate_bytes(shape: tuple[int, int]) -> int:
        d_out, d_in = shape
        return BYTES * (d_in * d_out * is_copied + 8 * (d_in + d_out) * min(width, *shape))

    if setup.gpus == 0:
        bases = BYTES * sum(min(setup.width, *shape) * shape[1] for shape in steps.shapes.values())
        return _statistics_bytes(steps, setup, False) + bases + max(map(iterate_bytes, steps.shapes.values()))
    each = [iterate_bytes(shape) + BYTES * shape[1] ** 2 for shape in steps.shapes.values()]
    return max(max(each), min(sum(each), GROUP_BYTES if setup.gpus == 1 else 0))


def _stage_flops(steps: SimulatedModel, setup: Setup) -> dict[str, float]:
    """Return the floating-point operations of calibration and subspaces, of one GPU."""
    tokens = setup.samples * setup.length
    passes = steps.run(setup, CALIBRATION).flops * setup.samples / setup.batch_size
    scores = sum(2.0 * tokens * rows * columns for rows, columns in steps.shapes.values())
    whole = sum(1.0 * tokens * d**2 for d in steps.distinct)  # one triangle

    def narrowed(widths: Iterable[int]) -> float:
        return sum(
            4.0 * tokens * d * setup.sketch_size if setup.is_sketched(d) else 1.0 * tokens * d**2 for d in widths
        )

    passes += narrowed(columns for _, columns in steps.shapes.values()) if setup.fisher else 0.0
    width = setup.width + OVERSAMPLING
    flops = {
        "calibration, covariances whole": passes + scores + whole,
        "calibration, covariances sketched": passes + scores + narrowed(steps.distinct),
        "subspaces": sum(_subspace_flops(*shape, width) for shape in steps.shapes.values()),
    }
    return {stage: count / max(setup.gpus, 1) for stage, count in flops.items()}


def _subspace_flops(rows: int, columns: int, width: int) -> float:
    """Count four products with ``W C`` and its transpose, two orthogonalizations, and decompositions of small cores.

    Operations in float64 or in small pieces count by their time relative to large float32 products on a CPU.
    """
    products = 16.0 * columns * (rows + columns) * width
    orthogonal = 60.0 * (rows + columns) * width**2
    return products + orthogonal + 1000.0 * width**3


def _training_choices(steps: SimulatedModel, setup: Setup, memory: float | None, speed: float | None) -> pd.DataFrame:
    """Return the ways to train an adapter, and how much fits: what fits first, then the cheapest first."""
    rows = []
    for kind, checkpointing in itertools.product(setup.adapters, (False, True)):
        if checkpointing and not steps.model.supports_gradient_checkpointing:
            continue
        once = replace(setup, gradient_checkpointing=checkpointing)
        peak, step = _stage_bytes(steps, once, f"training {kind}"), steps.run(once, kind)
        size, length = (math.nan, math.nan) if memory is None else _largest(steps, once, kind, memory)
        rows.append(
            {
                "training": kind,
                "gradient_checkpointing": checkpointing,
                "gigabytes": peak / 1e9,
                "activations": step.stored / 1e9,
                "fits": None if memory is None else peak <= memory,
                "batch_size": size,
                "length": length,
                "teraflops": step.flops / 1e12,
                "seconds": math.nan if speed is None else step.flops / speed,
            }
        )
    frame = pd.DataFrame(rows, columns=list(ResourceEstimate.choice_columns))
    return frame.sort_values(["fits", "teraflops"], ascending=[False, True], ignore_index=True)


def _largest(steps: SimulatedModel, setup: Setup, kind: str, memory: float) -> tuple[int, int]:
    """Return the most samples of the given length, and the most tokens of a sample in a batch of the given size.

    A step is simulated with twice the samples and with samples twice as long. What a batch adds to the rest is
    ``constant + linear x + quadratic x^2`` if samples are ``x`` times as long: logits of a fixed number of labels are
    constant, and attention is quadratic where it is a matrix of tokens by tokens.
    """
    double: dict[str, Any] = {
        "length": 2 * setup.length,
        "labels": setup.labels * (2 if setup.labels == setup.length else 1),
    }
    sizes = (setup, replace(setup, batch_size=2 * setup.batch_size), replace(setup, **double))
    peak, wider, longer = (_stage_bytes(steps, size, f"training {kind}") for size in sizes)
    once, twice, room = wider - peak, longer - 2 * peak + wider, max(memory - 2 * peak + wider, 0)
    constant, quadratic = max(2 * once - twice, 0), max(twice - 2 * once, 0) / 2
    linear, left = once - constant - quadratic, max(room - constant, 0)
    times = 2 * left / (linear + math.sqrt(linear**2 + 4 * quadratic * left)) if left else 0
    longest, _ = position_limit(steps.model) or (math.inf, "")
    length = int(min(longest, setup.length * times))
    if length > 2 * setup.length:  # attention may have become a larger part
        there = replace(setup, length=length, labels=length if setup.labels == setup.length else setup.labels)
        if _stage_bytes(steps, there, f"training {kind}") > 1.05 * memory:
            length = _largest(steps, there, kind, memory)[1]
    return int(setup.batch_size * room / once), length


def _propose_changes(steps: SimulatedModel, setup: Setup, memory: float) -> list[dict[str, Any]]:
    """Return what to change until calibration, subspaces and training fit, the cheapest change first."""
    proposed: dict[str, dict[str, Any]] = {}
    stages = ["calibration, covariances whole", "subspaces", "training A and B"]

    def peak(setup: Setup, stages: list[str]) -> int:
        return max(_stage_bytes(steps, setup, stage) for stage in stages)

    if _stage_bytes(steps, setup, stages[0]) > memory:
        before, stages[0] = peak(setup, stages), "calibration, covariances sketched"
        if peak(setup, stages) < 0.99 * before:
            price = f"of each covariance {setup.sketch_size} columns are kept"
            proposed["covariance"] = {"change": "covariance='sketch'", "costs": price, "bytes": peak(setup, stages)}
    for argument, value, change, price in _possible_changes(setup):
        before = peak(setup, stages)
        if before <= memory:
            break
        if argument == "gradient_checkpointing" and not steps.model.supports_gradient_checkpointing:
            continue
        if argument == "gpus" and "bits" in proposed:  # several GPUs need no rounding
            setup = replace(setup, bits=None)
            del proposed["bits"]
        new_setup, new_stages = setup, stages
        if argument == "freeze_a":
            new_stages = [*stages[:-1], "training B"]
        else:
            new_setup = replace(setup, **{argument: value})
        after = peak(new_setup, new_stages)
        if after < 0.99 * before:
            proposed[argument] = {"change": change, "costs": price, "bytes": after}
            setup, stages = new_setup, new_stages
    return list(proposed.values())


def _possible_changes(setup: Setup) -> Iterator[tuple[str, Any, str, str]]:
    """Yield an argument, its new value, the change in words and its price, the cheapest first."""
    yield "freeze_a", True, "freeze_a=True", "A is not trained; a step takes no longer"
    if setup.batch_size > 1:
        change = f"batch_size=1, gradient_accumulation_steps={setup.batch_size}"
        yield "batch_size", 1, change, "the same updates; small batches leave a GPU idle"
    if not setup.gradient_checkpointing:
        price = "a training step runs the forward pass twice"
        yield "gradient_checkpointing", True, "gradient_checkpointing=True", price
    if setup.state_bytes(BYTES) > 0:
        price = "states are rounded to 8 bits and come from the host"
        yield "optim", "paged_adamw_8bit", "optim='paged_adamw_8bit'", price
    for bits in (8, 4):
        if setup.bits is None or bits < setup.bits:
            change = f"quantization_config=BitsAndBytesConfig(load_in_{bits}bit=True)"
            yield "bits", bits, change, "the base is rounded"
    for gpus in GPU_COUNTS:
        if gpus > setup.gpus:
            yield "gpus", gpus, f"{gpus} GPUs, the base sharded by FSDP2", "more GPUs"


def matmul_speed(device: str | torch.device = "cpu", dtype: str = "float32", seconds: float = 0.1) -> float:
    """Measure the floating-point operations a second of a device in a product of 2,048 by 2,048 matrices.

    Parameters
    ----------
    device : str or torch.device
        The device.
    dtype : str
        Type of the matrices.
    seconds : float
        Time to measure for.

    Returns
    -------
    float
        Speed of the fastest product.
    """
    size = 2048
    a = torch.ones(size, size, device=device, dtype=floating_dtype(dtype))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def count_all_blocks(groups: list[Blocks], count: Callable[[], Step]) -> Step:
    """Return the counts of the whole model, from runs with one block of each group, and with two of one.

    All counts grow equally with each block of a group. Models that do not run with fewer blocks are run completely.
    """
    repeated = [blocks for blocks in groups if len(blocks.keys) > 2]
    total, one = sum(len(blocks.keys) for blocks in groups), len(groups)
    if not repeated or (1 + len(repeated)) * one + len(repeated) >= total:
        return count()
    few = {blocks: 1 if blocks in repeated else len(blocks.keys) for blocks in groups}
    try:
        with keep_blocks(few):
            first = np.array(count())
        counts = first.copy()
        for blocks in repeated:
            with keep_blocks(few | {blocks: 2}):
                counts += (len(blocks.keys) - 1) * (np.array(count()) - first)
    except NEEDS_ALL_BLOCKS:
        return count()
    return Step(*map(int, counts))


def _share_as_second_block(groups: list[Blocks], shared: dict[str, str], targets: dict[str, Target]) -> None:
    """Let modules of blocks that were not run share inputs as those of the second block of their group."""
    for names in (blocks.names() for blocks in groups):
        for block in names[2:]:
            for name in targets:
                if name not in shared and name.startswith(f"{block}."):
                    reader = shared[names[1] + name.removeprefix(block)]
                    shared[name] = reader.replace(f"{names[1]}.", f"{block}.", 1)


def _check_length(model: Any, setup: Setup) -> None:
    """Refuse more tokens than there are learned positions: a table without data accepts any index."""
    length = setup.length
    if setup.labels > length and not model.config.is_encoder_decoder:
        raise ValueError(f"labels={setup.labels} of {length} tokens: a sample has no more labels than tokens")
    limit, table = position_limit(model) or (length, "")
    if length > limit:
        raise ValueError(f"length={length}: the model reads at most {limit} tokens, by {table}")


def _weights(model: nn.Module, groups: list[Blocks], bits: int | None) -> Weights:
    packed = {id(layer.weight): QUANTIZED_BYTES[bits] for layer in _quantized_layers(model)} if bits else {}

    def stored_bytes(module: nn.Module) -> int:
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        return int(sum(tensor.numel() * packed.get(key, tensor.itemsize) for key, tensor in tensors.items()))

    names = [name for group in groups for name in group.names()]
    total, blocks = stored_bytes(model), [stored_bytes(model.get_submodule(name)) for name in names]
    return Weights(total, total - sum(blocks), max(blocks, default=0))


def _quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that bitsandbytes quantizes: all linear ones except those that compute logits."""
    left_out = {id(output_embeddings(model)), *(id(model.get_submodule(name)) for name in head_modules(model))}
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and id(m) not in left_out]


@contextlib.contextmanager
def _unpacking(layer: Any) -> Iterator[None]:
    """Let a layer make its weight for each product, as quantized ones do, keeping none for the backward pass."""
    shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]

    def forward(x: Tensor) -> Tensor:
        product: Tensor = _Unpacked.apply(x, shape)
        return product if layer.bias is None else product + layer.bias

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ gradient.new_empty(ctx.shape), None


def _calibration_pass(
    simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup
) -> tuple[Step, dict[str, str]]:
    shared: dict[str, str] = {}
    with observe_gradients(model, targets, lambda name, inputs, gradients: None) as recorder:

        def forward() -> Tensor:
            loss = batch_loss(model, setup)
            first: dict[int, str] = {}
            for name in targets:
                shared[name] = first.setdefault(id(recorder.inputs_of(name)[0]), name)
            return loss

        step = _measure(simulation, forward, recorder.clear)
    return step, shared


def _adapter_step(simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup, kind: str) -> Step:
    """Count a step with LoRA on every target, in the type of the adapter whatever that of the layer, as in PEFT."""
    model.requires_grad_(False)
    before = simulation.now
    handles = [
        model.get_submodule(name).register_forward_hook(
            _lora(target, setup.rank, setup.adapter_dtype(kind), freeze_a=kind == "B")
        )
        for name, target in targets.items()
    ]
    adapters = simulation.now - before
    try:
        with _training(model, setup):
            step = _measure(simulation, lambda: batch_loss(model, setup))
    finally:
        for handle in handles:
            handle.remove()
    return step._replace(peak=step.peak + adapters)


def _full_step(simulation: Simulation, model: Any, setup: Setup) -> Step:
    """Count a step of full fine-tuning, releasing gradients one by one: `_stage_bytes` adds them."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    handles = []
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(forget))
        with _training(model, setup):
            return _measure(simulation, lambda: batch_loss(model, setup))
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)


def _measure(simulation: Simulation, forward: Callable[[], Tensor], end: Callable[[], object] = lambda: None) -> Step:
    """Count a forward and a backward pass."""
    before, flops = simulation.now, simulation.flops
    simulation.peak = before
    loss = forward()
    stored = simulation.now - before
    loss.backward()
    end()
    return Step(simulation.peak - before, stored, simulation.flops - flops)


@contextlib.contextmanager
def _training(model: Any, setup: Setup) -> Iterator[None]:
    """Set a model to training, with gradient checkpointing if the setup has it."""
    model.train()
    if setup.gradient_checkpointing:
        switch_checkpointing(model, "enable", {"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        model.eval()
        if setup.gradient_checkpointing:
            switch_checkpointing(model, "disable")
            model.disable_input_require_grads()  # which enabling has set


def switch_checkpointing(model: Any, verb: str, *options: dict[str, bool]) -> None:
    """Enable or disable checkpointing of activations, as transformers names it: earlier ``gradient_checkpointing_``."""
    named = f"activation_checkpointing_{verb}"
    getattr(model, named if hasattr(model, named) else f"gradient_checkpointing_{verb}")(*options)


def _lora(target: Target, rank: int, dtype: torch.dtype, *, freeze_a: bool) -> Callable[..., Tensor]:
    rank = min(rank, target.d_in, target.d_out)
    a = torch.zeros(rank, target.d_in, dtype=dtype, requires_grad=not freeze_a)
    b = torch.zeros(target.d_out, rank, dtype=dtype, requires_grad=True)

    def update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].to(dtype)  # held to the end, as PEFT does
        return (output + functional.linear(functional.linear(x, a), b) * 2.0).to(output.dtype)

    return update


def batch_loss(model: Any, setup: Setup) -> Tensor:
    """Return the summed loss of a batch of the given size; a causal model computes logits for labels only."""
    ids = torch.zeros(setup.batch_size, setup.length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(setup.batch_size, setup.labels, dtype=torch.long)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = labels  # shifting labels needs a start token, which a bare config may lack
    elif has_argument(model, "logits_to_keep"):
        inputs["logits_to_keep"] = setup.labels
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), ids[:, 0], reduction="sum")
    return functional.cross_entropy(logits[:, : setup.labels].float().transpose(1, 2), labels, reduction="sum")
