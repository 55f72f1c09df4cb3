"""Estimate the memory and time of calibrating and training a model from its config alone."""

from __future__ import annotations

import contextlib
import copy
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from tlora.allocation.footprint import BYTES, KINDS, uniform_footprints
from tlora.calibration.calibration import Options
from tlora.models.forward import has_argument, position_limit
from tlora.models.hooks import ObservationError, observe_gradients
from tlora.models.loading import choose_architecture, floating_dtype, load_config
from tlora.models.simulation import Blocks, Simulation, group_blocks, keep_blocks, simulation_mode
from tlora.models.targets import NEWLY_INITIALIZED, Target, head_modules, output_embeddings
from tlora.models.targets import target_modules as select_targets
from tlora.numerics.linalg import OVERSAMPLING
from tlora.results import Meta, Result
from tlora.subspaces.task_subspaces import GROUP_BYTES
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE
from tlora.utils.validation import list_names, require_choice, require_positive, require_positive_int

FULL = "all weights"
"""The kind of training that is full fine-tuning."""

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
        Peak memory of each stage, including the weights; of one GPU if there are several.
    flops : dict of float
        Floating-point operations of each stage; of one GPU if there are several.
    speed : float or None
        Floating-point operations a second, for the seconds.
    memory : int or None
        Available bytes.
    changes : list of dict
        If calibration with whole covariances, subspaces or training ``B`` do not fit: what to change, the cheapest
        change first, each in addition to those before it. ``"change"`` names the argument, ``"costs"`` its price,
        ``"bytes"`` the peak memory with it. Even the last may not be enough.
    meta : Meta
        Model and arguments.

    Examples
    --------
    >>> estimate = tlora.estimate("base", rank=8, memory=1e6)
    >>> estimate
    ResourceEstimate(... parameters, 14 modules with 8 distinct inputs of base, at most ... GB)
    >>> list(estimate.to_frame().columns)
    ['stage', 'gigabytes', 'teraflops', 'seconds', 'fits']
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    trainable: dict[str, int]
    bytes: dict[str, int]
    flops: dict[str, float]
    speed: float | None
    memory: int | None
    changes: list[dict[str, Any]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "stage": "stage of the pipeline",
        "gigabytes": "peak memory (1e9 bytes), including weights; of one GPU if there are several",
        "teraflops": "1e12 floating-point operations; for training, of one step",
        "seconds": "time at the given speed; NaN without",
        "fits": "whether it fits in the given memory; None without",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row a stage; see ``columns``."""
        stages = list(self.bytes)
        operations = [self.flops.get(stage, 0.0) for stage in stages]
        return pd.DataFrame(
            {
                "stage": stages,
                "gigabytes": [self.bytes[stage] / 1e9 for stage in stages],
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
    )
    with simulation_mode() as simulation:
        base = choose_architecture(config, num_labels).from_config(config, dtype=setup.precision).eval()
        NEWLY_INITIALIZED[base] = ()  # there is no checkpoint that could lack weights
        run = partial(_simulate, simulation, base, select_targets(base, target_modules))
        costs = run(setup)
        largest = sum(min(shape) for shape in costs.shapes.values()) // len(costs.shapes)
        if rank > largest:
            raise ValueError(
                f"rank={rank} exceeds the matrices of the {len(costs.shapes)} modules: use at most {largest}"
            )
        stage_bytes = _stage_bytes(costs, setup)
        changes = [] if memory is None else _propose_changes(run, costs, setup, stage_bytes, memory)
    return ResourceEstimate(
        shapes=costs.shapes,
        shared=costs.shared,
        parameters=costs.parameters,
        trainable={
            kind: adapter.trainable_parameters + costs.head
            for kind, adapter in uniform_footprints(costs.shapes, rank).items()
        },
        bytes=stage_bytes,
        flops=_stage_flops(costs, setup),
        speed=speed,
        memory=None if memory is None else int(memory),
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


class StepCosts(NamedTuple):
    """Sizes of a model, and peak bytes and operations of its steps.

    ``step_bytes`` and ``step_flops`` have an entry for a calibration batch (``"calibration"``) and for each kind of
    training. The bytes are those in addition to the weights; for training they include adapter and its gradient, but no
    gradients of the base and no states of an optimizer. ``block_bytes`` is the peak in addition to weights and
    gradients in a step of full fine-tuning of one block of each kind.
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    head: int
    full_weights: Weights
    weights: Weights
    step_bytes: dict[str, int]
    step_flops: dict[str, int]
    block_bytes: int


def _stage_bytes(costs: StepCosts, setup: Setup) -> dict[str, int]:
    """Return the peak memory of each stage."""
    distinct = [costs.shapes[name][1] for name in set(costs.shared.values())]
    sketched = [d for d in distinct if setup.is_sketched(d)]
    dense = [d for d in distinct if not setup.is_sketched(d)]
    means = BYTES * sum(d * min(setup.samples, d) for d in distinct)
    whole = BYTES * sum(d**2 for d in distinct) + means
    sketches = BYTES * (sum(d**2 for d in dense) + setup.sketch_size * (sum(sketched) + sum(set(sketched)))) + means
    weights = costs.weights.bytes_per_gpu(setup.gpus)
    stages = {
        "weights": weights,
        "calibration, covariances whole": weights + costs.step_bytes["calibration"] + whole,
        "calibration, covariances sketched": weights + costs.step_bytes["calibration"] + sketches,
        "subspaces": weights + _subspace_bytes(costs, setup, whole),
    }
    for kind, adapter in uniform_footprints(costs.shapes, setup.rank).items():
        if kind in costs.step_bytes:
            states = setup.state_bytes(BYTES) * (adapter.trainable_parameters + costs.head)
            head = 2 * BYTES * costs.head  # its float32 copy and its gradient
            stages[f"training {kind}"] = weights + costs.step_bytes[kind] + states + head
    if FULL not in costs.step_bytes:
        return stages
    shard, size = costs.parameters // max(setup.gpus, 1), setup.precision.itemsize
    peak = max(costs.step_bytes[FULL], shard * size + costs.block_bytes)  # with most activations, with all gradients
    stages[f"training {FULL}"] = costs.full_weights.bytes_per_gpu(setup.gpus) + peak + shard * setup.state_bytes(size)
    return stages


def _subspace_bytes(costs: StepCosts, setup: Setup, covariances: int) -> int:
    """Return the bytes of covariances, float32 weights and iterates of the modules that are decomposed together.

    On the CPU, and if several GPUs share a base, it is one module at a time; on the CPU in addition to all covariances
    and bases.
    """
    width = setup.width + OVERSAMPLING
    is_copied = setup.bits is not None or setup.precision != torch.float32

    def iterate_bytes(shape: tuple[int, int]) -> int:
        d_out, d_in = shape
        return BYTES * (d_in * d_out * is_copied + 8 * (d_in + d_out) * min(width, *shape))

    if setup.gpus == 0:
        bases = BYTES * sum(min(setup.width, *shape) * shape[1] for shape in costs.shapes.values())
        return covariances + bases + max(map(iterate_bytes, costs.shapes.values()))
    each = [iterate_bytes(shape) + BYTES * shape[1] ** 2 for shape in costs.shapes.values()]
    return max(max(each), min(sum(each), GROUP_BYTES if setup.gpus == 1 else 0))


def _stage_flops(costs: StepCosts, setup: Setup) -> dict[str, float]:
    """Return the floating-point operations of each stage, of one GPU."""
    tokens = setup.samples * setup.length
    passes = costs.step_flops["calibration"] * setup.samples / setup.batch_size
    scores = sum(2.0 * tokens * rows * columns for rows, columns in costs.shapes.values())
    distinct = [costs.shapes[name][1] for name in set(costs.shared.values())]
    whole = sum(1.0 * tokens * d**2 for d in distinct)  # one triangle
    sketched = sum(
        4.0 * tokens * d * setup.sketch_size if setup.is_sketched(d) else 1.0 * tokens * d**2 for d in distinct
    )
    width = setup.width + OVERSAMPLING
    once = {
        "calibration, covariances whole": passes + scores + whole,
        "calibration, covariances sketched": passes + scores + sketched,
        "subspaces": sum(_subspace_flops(*shape, width) for shape in costs.shapes.values()),
    }
    steps = {f"training {kind}": float(costs.step_flops[kind]) for kind in (*KINDS, FULL)}
    return {stage: flops / max(setup.gpus, 1) for stage, flops in once.items()} | steps


def _subspace_flops(rows: int, columns: int, width: int) -> float:
    """Count four products with ``W C`` and its transpose, two orthogonalizations, and decompositions of small cores.

    Operations in float64 or in small pieces count by their time relative to large float32 products on a CPU.
    """
    products = 16.0 * columns * (rows + columns) * width
    orthogonal = 60.0 * (rows + columns) * width**2
    return products + orthogonal + 1000.0 * width**3


def _propose_changes(
    run: Callable[..., StepCosts], costs: StepCosts, setup: Setup, stage_bytes: dict[str, int], memory: float
) -> list[dict[str, Any]]:
    """Return what to change until calibration, subspaces and training ``B`` fit, the cheapest change first."""
    proposed: dict[str, dict[str, Any]] = {}
    stages = ["calibration, covariances whole", "subspaces", f"training {KINDS[0]}"]
    key = attrgetter("bits", "gradient_checkpointing", "batch_size")  # what the simulation depends on
    simulations = {key(setup): costs}

    def peak(stage_bytes: dict[str, int]) -> int:
        return max(stage_bytes[stage] for stage in stages)

    before = peak(stage_bytes)
    if stage_bytes[stages[0]] > memory:
        stages[0] = "calibration, covariances sketched"
        if peak(stage_bytes) < 0.99 * before:
            price = f"of each covariance {setup.sketch_size} columns are kept"
            proposed["covariance"] = {"change": "covariance='sketch'", "costs": price, "bytes": peak(stage_bytes)}
    for argument, value, change, price in _possible_changes(setup):
        if peak(stage_bytes) <= memory:
            break
        if argument == "gpus" and "bits" in proposed:  # several GPUs need no rounding
            setup = replace(setup, bits=None)
            del proposed["bits"]
        new_setup = replace(setup, **{argument: value})
        try:
            simulations[key(new_setup)] = simulations.get(key(new_setup)) or run(new_setup, KINDS[:1])
        except ValueError:  # the model cannot checkpoint gradients
            continue
        after = _stage_bytes(simulations[key(new_setup)], new_setup)
        if peak(after) < 0.99 * peak(stage_bytes):
            proposed[argument] = {"change": change, "costs": price, "bytes": peak(after)}
            setup, stage_bytes = new_setup, after
    return list(proposed.values())


def _possible_changes(setup: Setup) -> Iterator[tuple[str, Any, str, str]]:
    """Yield an argument, its new value, the change in words and its price, the cheapest first."""
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


def matmul_speed(device: str | torch.device = "cpu", dtype: str = "float32", seconds: float = 0.5) -> float:
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


def _simulate(
    simulation: Simulation,
    model: Any,
    targets: dict[str, Target],
    setup: Setup,
    trained: Sequence[str] = (*KINDS, FULL),
) -> StepCosts:
    """Run a model's code for one calibration batch and one training step of each kind, on tensors without data."""
    if setup.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ValueError(f"gradient_checkpointing=True: {type(model).__name__} does not support it, leave it out")
    _check_length(model, setup)
    groups = group_blocks(model)
    shared: dict[str, str] = {}
    quantized = _quantized_layers(model) if setup.bits else []

    def count() -> dict[str, tuple[int, int]]:
        running = {name for name, _ in model.named_modules()}
        present = {name: target for name, target in targets.items() if name in running}
        with contextlib.ExitStack() as undo:
            for layer in quantized:
                undo.enter_context(_unpacking(layer))
            calibration, inputs = _calibration_pass(simulation, model, present, setup)
            shared.update({name: first for name, first in inputs.items() if name not in shared})
            counts = {"calibration": calibration} | {
                kind: _adapter_step(simulation, model, present, setup, kind) for kind in KINDS if kind in trained
            }
        if FULL in trained:
            counts[FULL] = _full_step(simulation, model, setup)
        return counts

    try:
        counts, block_bytes = count_all_blocks(groups, count), 0
    except ObservationError:
        raise
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be estimated: its code depends on the values of tensors, which have no "
            "data here"
        ) from error
    _share_as_second_block(groups, shared, targets)
    if FULL in trained:
        with keep_blocks({blocks: 1 for blocks in groups}), contextlib.suppress(*NEEDS_ALL_BLOCKS):
            block_bytes, _ = _full_step(simulation, model, replace(setup, labels=1))
    return StepCosts(
        shapes={name: (target.d_out, target.d_in) for name, target in targets.items()},
        shared={name: shared[name] for name in targets},
        parameters=sum(p.numel() for p in model.parameters()),
        head=sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters()),
        full_weights=_weights(model, groups, [], None),
        weights=_weights(model, groups, quantized, setup.bits),
        step_bytes={stage: size for stage, (size, _) in counts.items()},
        step_flops={stage: flops for stage, (_, flops) in counts.items()},
        block_bytes=block_bytes,
    )


def count_all_blocks(
    groups: list[Blocks], count: Callable[[], dict[str, tuple[int, int]]]
) -> dict[str, tuple[int, int]]:
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
            first = count()
        counts = {stage: np.array(counted) for stage, counted in first.items()}
        for blocks in repeated:
            with keep_blocks(few | {blocks: 2}):
                second = count()
            for stage, counted in second.items():
                counts[stage] += (len(blocks.keys) - 1) * (np.array(counted) - first[stage])
    except NEEDS_ALL_BLOCKS:
        return count()
    return {stage: (int(size), int(flops)) for stage, (size, flops) in counts.items()}


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


def _weights(model: nn.Module, groups: list[Blocks], quantized: list[nn.Module], bits: int | None) -> Weights:
    packed = {id(layer.weight): QUANTIZED_BYTES[bits] for layer in quantized} if bits else {}

    def stored_bytes(module: nn.Module) -> int:
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        return int(sum(tensor.numel() * packed.get(key, tensor.itemsize) for key, tensor in tensors.items()))

    total, blocks = (
        stored_bytes(model),
        [stored_bytes(model.get_submodule(name)) for group in groups for name in group.names()],
    )
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
) -> tuple[tuple[int, int], dict[str, str]]:
    shared: dict[str, str] = {}
    with observe_gradients(model, targets, lambda name, inputs, gradients: None) as recorder:

        def act() -> None:
            loss = batch_loss(model, setup)
            first: dict[int, str] = {}
            for name in targets:
                shared[name] = first.setdefault(id(recorder.inputs_of(name)[0]), name)
            loss.backward()
            recorder.clear()

        counted = simulation.measure(act)
    return counted, shared


def _adapter_step(
    simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup, kind: str
) -> tuple[int, int]:
    """Count a step with LoRA on every target, which PEFT computes in float32 whatever the precision of the layer."""

    def act() -> None:
        model.requires_grad_(False)
        handles = [
            model.get_submodule(name).register_forward_hook(_lora(target, setup.rank, freeze_a=kind == "B"))
            for name, target in targets.items()
        ]
        try:
            batch_loss(model, setup).backward()
        finally:
            for handle in handles:
                handle.remove()

    with _training(model, setup):
        return simulation.measure(act)


def _full_step(simulation: Simulation, model: Any, setup: Setup) -> tuple[int, int]:
    """Count a step of full fine-tuning, releasing gradients one by one: `_stage_bytes` adds them."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    parameters = list(model.parameters())
    handles = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(forget))
        with _training(model, setup):
            return simulation.measure(lambda: batch_loss(model, setup).backward())
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)


@contextlib.contextmanager
def _training(model: Any, setup: Setup) -> Iterator[None]:
    """Set a model to training, with gradient checkpointing if the setup has it."""
    model.train()
    if setup.gradient_checkpointing:
        model.config.use_cache = False  # incompatible with checkpointing
        _checkpointing(model, "enable", {"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        model.eval()
        if setup.gradient_checkpointing:
            _checkpointing(model, "disable")


def _checkpointing(model: Any, verb: str, *options: dict[str, bool]) -> None:
    named = f"activation_checkpointing_{verb}"  # named gradient_checkpointing before transformers 5
    getattr(model, named if hasattr(model, named) else f"gradient_checkpointing_{verb}")(*options)


def _lora(target: Target, rank: int, *, freeze_a: bool) -> Callable[..., Tensor]:
    rank = min(rank, target.d_in, target.d_out)
    a = torch.zeros(rank, target.d_in, requires_grad=not freeze_a)
    b = torch.zeros(target.d_out, rank, requires_grad=True)

    def update(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output + functional.linear(functional.linear(args[0].to(a.dtype), a), b)).to(output.dtype)

    return update


def batch_loss(model: Any, setup: Setup) -> Tensor:
    """Return the summed loss of a batch of the given size; a causal model computes logits for labels only."""
    ids = torch.zeros(setup.batch_size, setup.length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(setup.batch_size, setup.labels, dtype=torch.long)
    if model.config.is_encoder_decoder:
        inputs["labels"] = labels
    elif has_argument(model, "logits_to_keep"):
        inputs["logits_to_keep"] = setup.labels
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), ids[:, 0], reduction="sum")
    return functional.cross_entropy(logits[:, : setup.labels].float().transpose(1, 2), labels, reduction="sum")
