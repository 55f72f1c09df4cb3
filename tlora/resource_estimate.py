"""Estimate what calibrating and training a model will take, from its config alone."""

from __future__ import annotations

import contextlib
import copy
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

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
from tlora.models.targets import NEWLY_INITIALIZED, Target, head_modules, output_embeddings, target_modules
from tlora.numerics.linalg import OVERSAMPLING
from tlora.results import Meta, Result
from tlora.subspaces.task_subspaces import GROUP_BYTES
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE
from tlora.utils.validation import list_names, one_of, positive, positive_int

FULL = "all weights"
"""What full fine-tuning trains."""

STATES = {
    "adamw_torch": (2, 0),
    "adamw_bnb_8bit": (0, 2),
    "paged_adamw_32bit": (0, 0),
    "paged_adamw_8bit": (0, 0),
    "sgd": (0, 0),
}
"""What optimizers, by their name in ``transformers.TrainingArguments``, keep on the GPU for a parameter: numbers of
its own type, and bytes. Paged states are on the host."""

QUANTIZED = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a weight of a bitsandbytes base, by its bits: those of 4 bits have a float32 scale for every 64."""

NOT_WITHOUT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise whose code does not run without some of their blocks."""

GPUS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs that are proposed."""


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
        Most memory at once, by stage, the weights included; of one GPU where there are several.
    flops : dict of float
        Floating-point operations, by stage; of one GPU where there are several.
    speed : float or None
        Floating-point operations a second that seconds are counted at.
    memory : int or None
        Bytes that there are.
    changes : list of dict
        Where calibration with whole covariances, subspaces or training ``B`` do not fit: what to change, what costs
        least first, one after the other until they do. ``"change"`` names the argument, ``"costs"`` what it takes in
        return, ``"bytes"`` the most memory at once with it and all before it. The last may still be too much.
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
    changes: list[dict[str, Any]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "stage": "what is done",
        "gigabytes": "most memory at once (1e9 bytes), weights included; of one GPU where there are several",
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
    """What calibration, subspaces and training will take, from the model's config alone.

    Nothing is downloaded but the config, and no weight is made: the model's own code is run on tensors that have shapes
    and no data, and what would be alive at each moment is added up. Of blocks that are alike one and two are run, and
    the others counted as the second.

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
        Labelled tokens of a sample, for which there are logits; all by default.
    sketch_size : int
        Columns of a sketch of a covariance.
    dtype : str
        Of the weights, and of what is computed with them.
    bits : {4, 8}, optional
        Of the weights of linear layers, in a base that bitsandbytes quantizes; by default what the config says. Full
        fine-tuning is counted without.
    gradient_checkpointing : bool
        Whether training keeps the inputs of blocks alone, and computes the rest twice.
    optim : {"adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"}
        The optimizer, as in ``transformers.TrainingArguments``.
    gpus : int
        Cards. Beyond 1 the base is sharded over them by FSDP2 (``fully_shard`` of each block and of the whole), and
        adapters and statistics are whole on each. 0: all is in the memory of the CPU, covariances beside the model.
    num_labels : int, optional
        Classes, where the model is to be a classifier.
    target_modules : str or iterable of str, optional
        As for `tlora.calibrate`.
    speed : float, optional
        Floating-point operations a second of one GPU, for the seconds; ``tlora.resource_estimate.matmul_speed``
        measures that of a device.
    memory : float, optional
        Bytes that one GPU has, for what fits and what to change.

    Returns
    -------
    ResourceEstimate

    Raises
    ------
    ValueError
        If a number is out of range, the samples are longer than the learned positions of the model, it has no
        target modules, it cannot checkpoint gradients, or its code depends on the values of tensors.
    RuntimeError
        If a target module does not run, as some of state-space models, or no gradient can reach it.

    Warns
    -----
    UserWarning
        If the config asks for weights of other bits than 4 and 8, which are counted as they would be without.

    Notes
    -----
    Memory is that of tensors: a process has its libraries beside them, a few hundred megabytes. Ranks are counted as
    uniform; what sensitivity shares out differently sums to the same. Subspaces are counted for kind ``"wc"``. Time is
    that of products at the given speed, a lower bound.
    """
    positive_int(rank, "rank")
    for what, value in (("speed", speed), ("memory", memory)):
        if value is not None:
            positive(what, value)
    work = Workload(samples, length, batch_size, length if labels is None else labels)
    config = copy.deepcopy(model) if isinstance(model, PretrainedConfig) else load_config(model)
    name = config._name_or_path if isinstance(model, PretrainedConfig) else str(model)
    target_modules = list_names(target_modules)
    setup = Setup(
        dtype, _bits(config, dtype) if bits is None else bits, gradient_checkpointing, optim, gpus, rank, sketch_size
    )
    asked = asdict(work) | asdict(setup) | {"num_labels": num_labels, "target_modules": target_modules}
    with built(choose_architecture(config, num_labels), config, setup.precision, target_modules) as base:
        seen = simulate(base, setup, work)
        most = sum(min(shape) for shape in seen.shapes.values()) // len(seen.shapes)
        if rank > most:
            raise ValueError(
                f"rank={rank} is beyond the matrices of the {len(seen.shapes)} modules: give at most {most}"
            )
        found = _bytes(seen, setup, work)
        changes = [] if memory is None else _changes(base, seen, setup, work, found, memory)
    return ResourceEstimate(
        shapes=seen.shapes,
        shared=seen.shared,
        parameters=seen.parameters,
        trainable={
            kind: adapter.trainable_parameters + seen.head
            for kind, adapter in uniform_footprints(seen.shapes, rank).items()
        },
        bytes=found,
        flops=_flops(seen, setup, work),
        speed=speed,
        memory=None if memory is None else int(memory),
        changes=changes,
        meta=Meta(name or type(config).__name__, recipe=asked, samples=samples),
    )


def _bits(config: PretrainedConfig, dtype: str) -> int | None:
    """What a config says about quantized weights."""
    asked = getattr(config, "quantization_config", None)
    if not asked:
        return None
    asked = asked if isinstance(asked, dict) else asked.to_dict()
    bits = 4 if asked.get("load_in_4bit") else 8 if asked.get("load_in_8bit") else asked.get("bits")
    if bits in QUANTIZED:
        return int(bits)
    warnings.warn(
        f"the config asks for quantized weights, and the estimate counts them in {dtype}: they will take less",
        stacklevel=3,
    )
    return None


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
class Setup:
    """How a model is held and trained; the fields are arguments of `estimate`.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    dtype: str
    bits: int | None
    gradient_checkpointing: bool
    optim: str
    gpus: int
    rank: int
    sketch_size: int

    def __post_init__(self) -> None:
        floating_dtype(self.dtype)
        if self.bits is not None and self.bits not in QUANTIZED:
            raise ValueError(f"bits={self.bits!r}: give 4 or 8, as bitsandbytes has them, or leave it out")
        one_of("optim", self.optim, list(STATES))
        positive_int(self.gpus, "gpus", 0)
        Options(covariance="sketch", sketch_size=self.sketch_size)

    @property
    def precision(self) -> torch.dtype:
        """Type of the weights."""
        return floating_dtype(self.dtype)

    @property
    def width(self) -> int:
        """Directions that subspaces are computed up to: allocations give few modules over four times the nominal."""
        return 4 * self.rank

    def is_sketched(self, d: int) -> bool:
        """Whether a sketch keeps less of a covariance of this size."""
        return Options(covariance="sketch", sketch_size=self.sketch_size).is_sketched(d)

    def states(self, itemsize: int) -> int:
        """Bytes that the optimizer keeps of a parameter of this size."""
        numbers, fixed = STATES[self.optim]
        return numbers * itemsize + fixed


@dataclass(frozen=True)
class Base:
    """A model without data, and what it is run in.

    Attributes
    ----------
    simulation : Simulation
        What counts.
    model : PreTrainedModel
        The model.
    targets : dict of Target
        Its target modules.
    groups : list of Blocks
        Its blocks, those that are alike together.
    """

    simulation: Simulation
    model: Any
    targets: dict[str, Target]
    groups: list[Blocks]


@contextlib.contextmanager
def built(architecture: Any, config: PretrainedConfig, dtype: torch.dtype, targets: Any) -> Iterator[Base]:
    """A model of an auto class of transformers, for as long as the block goes on."""
    with simulation_mode() as simulation:
        model = architecture.from_config(config, dtype=dtype).eval()
        NEWLY_INITIALIZED[model] = ()  # what a checkpoint lacks is not known
        yield Base(simulation, model, target_modules(model, targets), group_blocks(model))


@dataclass(frozen=True)
class Simulated:
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
    whole : Weights
        Bytes of parameters and buffers.
    kept : Weights
        The same as quantized.
    step_bytes : dict of int
        Most bytes beside the weights: of the forward and backward pass of a batch that is calibrated on
        (``"calibration"``), and of a training step by what is trained, adapter and its gradient included; without the
        gradients of a base, and without an optimizer's states.
    step_flops : dict of int
        Its floating-point operations.
    block_bytes : int
        Most bytes beside the weights and gradients in a step of full fine-tuning of one block of each kind: what is
        there when all gradients are.
    """

    shapes: dict[str, tuple[int, int]]
    shared: dict[str, str]
    parameters: int
    head: int
    whole: Weights
    kept: Weights
    step_bytes: dict[str, int]
    step_flops: dict[str, int]
    block_bytes: int


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights: of all, of those outside of its blocks, and of the largest block."""

    total: int
    outside: int
    block: int

    def bytes_per_gpu(self, gpus: int) -> int:
        """Bytes on a GPU: its shard, what is outside of blocks, and two blocks, of which one arrives early."""
        if gpus <= 1:
            return self.total
        return self.total // gpus + self.outside + 2 * self.block


def _bytes(seen: Simulated, setup: Setup, work: Workload) -> dict[str, int]:
    """Most memory at once, by stage."""
    distinct = [seen.shapes[name][1] for name in set(seen.shared.values())]
    sketched = [d for d in distinct if setup.is_sketched(d)]
    dense = [d for d in distinct if not setup.is_sketched(d)]
    means = BYTES * sum(d * min(work.samples, d) for d in distinct)
    whole = BYTES * sum(d**2 for d in distinct) + means
    few = BYTES * (sum(d**2 for d in dense) + setup.sketch_size * (sum(sketched) + sum(set(sketched)))) + means
    weights = seen.kept.bytes_per_gpu(setup.gpus)
    found = {
        "weights": weights,
        "calibration, covariances whole": weights + seen.step_bytes["calibration"] + whole,
        "calibration, covariances sketched": weights + seen.step_bytes["calibration"] + few,
        "subspaces": weights + _subspace_bytes(seen, setup, whole),
    }
    for kind, adapter in uniform_footprints(seen.shapes, setup.rank).items():
        if kind in seen.step_bytes:
            states = setup.states(BYTES) * (adapter.trainable_parameters + seen.head)
            head = 2 * BYTES * seen.head  # its float32 copy and the gradient
            found[f"training {kind}"] = weights + seen.step_bytes[kind] + states + head
    if FULL not in seen.step_bytes:
        return found
    shard, size = seen.parameters // max(setup.gpus, 1), setup.precision.itemsize
    at_most = max(seen.step_bytes[FULL], shard * size + seen.block_bytes)  # with most activations, with all gradients
    found[f"training {FULL}"] = seen.whole.bytes_per_gpu(setup.gpus) + at_most + shard * setup.states(size)
    return found


def _subspace_bytes(seen: Simulated, setup: Setup, covariances: int) -> int:
    """Covariances and float32 weights of the modules that are decomposed side by side, and blocks of the iteration.

    On the CPU, and where several GPUs share a base, it is one module at a time; on the CPU beside all covariances and
    the bases found.
    """
    width = setup.width + OVERSAMPLING
    is_copied = setup.bits is not None or setup.precision != torch.float32

    def of(shape: tuple[int, int]) -> int:
        d_out, d_in = shape
        return BYTES * (d_in * d_out * is_copied + 8 * (d_in + d_out) * min(width, *shape))

    if setup.gpus == 0:
        bases = BYTES * sum(min(setup.width, *shape) * shape[1] for shape in seen.shapes.values())
        return covariances + bases + max(map(of, seen.shapes.values()))
    each = [of(shape) + BYTES * shape[1] ** 2 for shape in seen.shapes.values()]
    return max(max(each), min(sum(each), GROUP_BYTES if setup.gpus == 1 else 0))


def _flops(seen: Simulated, setup: Setup, work: Workload) -> dict[str, float]:
    """Floating-point operations of one GPU, by stage."""
    tokens = work.samples * work.length
    passes = seen.step_flops["calibration"] * work.samples / work.batch_size
    scores = sum(2.0 * tokens * rows * columns for rows, columns in seen.shapes.values())
    distinct = [seen.shapes[name][1] for name in set(seen.shared.values())]
    whole = sum(1.0 * tokens * d**2 for d in distinct)  # one triangle
    sketched = sum(
        4.0 * tokens * d * setup.sketch_size if setup.is_sketched(d) else 1.0 * tokens * d**2 for d in distinct
    )
    width = setup.width + OVERSAMPLING
    once = {
        "calibration, covariances whole": passes + scores + whole,
        "calibration, covariances sketched": passes + scores + sketched,
        "subspaces": sum(_subspace_flops(*shape, width) for shape in seen.shapes.values()),
    }
    steps = {f"training {kind}": float(seen.step_flops[kind]) for kind in (*KINDS, FULL)}
    return {stage: flops / max(setup.gpus, 1) for stage, flops in once.items()} | steps


def _subspace_flops(rows: int, columns: int, width: int) -> float:
    """Four products with ``W C`` and its transpose, two bases made orthogonal, and decompositions of small cores.

    What is done in float64 or in small pieces counts by its time, as measured beside large float32 products on a CPU.
    """
    products = 16.0 * columns * (rows + columns) * width
    orthogonal = 60.0 * (rows + columns) * width**2
    return products + orthogonal + 1000.0 * width**3


def _changes(
    base: Base, seen: Simulated, setup: Setup, work: Workload, found: dict[str, int], memory: float
) -> list[dict[str, Any]]:
    """What to change until calibration, subspaces and training ``B`` fit, what costs least first."""
    done: dict[str, dict[str, Any]] = {}
    stages = ["calibration, covariances whole", "subspaces", f"training {KINDS[0]}"]
    simulations = {_simulated_by(setup, work): seen}

    def most(found: dict[str, int]) -> int:
        return max(found[stage] for stage in stages)

    before = most(found)
    if found[stages[0]] > memory:
        stages[0] = "calibration, covariances sketched"
        if most(found) < 0.99 * before:
            costs = f"of each covariance {setup.sketch_size} columns are kept"
            done["covariance"] = {"change": "covariance='sketch'", "costs": costs, "bytes": most(found)}
    for argument, change, costs, changes in _ladder(setup, work):
        if most(found) <= memory:
            break
        if argument == "gpus" and "bits" in done:  # several GPUs need no rounding
            setup = replace(setup, bits=None)
            del done["bits"]
        tried = replace(setup, **{name: value for name, value in changes.items() if name != "batch_size"})
        less = replace(work, batch_size=changes.get("batch_size", work.batch_size))
        key = _simulated_by(tried, less)
        try:
            simulations[key] = simulations.get(key) or simulate(base, tried, less, KINDS[:1])
        except ValueError:  # it cannot checkpoint gradients
            continue
        after = _bytes(simulations[key], tried, less)
        if most(after) < 0.99 * most(found):
            done[argument] = {"change": change, "costs": costs, "bytes": most(after)}
            setup, work, found = tried, less, after
    return list(done.values())


def _simulated_by(setup: Setup, work: Workload) -> tuple[Any, ...]:
    return setup.bits, setup.gradient_checkpointing, work.batch_size


def _ladder(setup: Setup, work: Workload) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Argument, change, what it costs, and the new values; the cheapest first."""
    if work.batch_size > 1:
        change = f"batch_size=1, gradient_accumulation_steps={work.batch_size}"
        yield "batch_size", change, "the same updates; small batches leave a GPU idle", {"batch_size": 1}
    if not setup.gradient_checkpointing:
        change, costs = "gradient_checkpointing=True", "a training step runs the forward pass twice"
        yield "gradient_checkpointing", change, costs, {"gradient_checkpointing": True}
    if setup.states(BYTES) > 0:
        change, costs = "optim='paged_adamw_8bit'", "states are rounded to 8 bits and come from the host"
        yield "optim", change, costs, {"optim": "paged_adamw_8bit"}
    for bits in (8, 4):
        if setup.bits is None or bits < setup.bits:
            change, costs = f"quantization_config=BitsAndBytesConfig(load_in_{bits}bit=True)", "the base is rounded"
            yield "bits", change, costs, {"bits": bits}
    for gpus in GPUS:
        if gpus > setup.gpus:
            yield "gpus", f"{gpus} GPUs, the base sharded by FSDP2", "more GPUs", {"gpus": gpus}


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


def simulate(base: Base, setup: Setup, work: Workload, trained: Sequence[str] = (*KINDS, FULL)) -> Simulated:
    """Run a model's code for one calibration batch and one training step of each kind, on tensors without data.

    Parameters
    ----------
    base : Base
        The model.
    setup : Setup
        How it is held and trained; optimizer and GPUs make no difference here.
    work : Workload
        Sizes.
    trained : sequence of str
        Kinds of training that are run, beside calibration.

    Raises
    ------
    ValueError
        If a sample is longer than the model reads or has more labels than tokens where these are the same ones, the
        model cannot checkpoint gradients, or its code asks for values.
    RuntimeError
        If a target module does not run, or no gradient can reach it.
    """
    simulation, model, targets, groups = base.simulation, base.model, base.targets, base.groups
    if setup.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ValueError(f"gradient_checkpointing=True: {type(model).__name__} cannot: leave it out")
    _check_length(model, work)
    shared: dict[str, str] = {}
    quantized = _quantized(model) if setup.bits else []

    def count() -> dict[str, tuple[int, int]]:
        running = {name for name, _ in model.named_modules()}
        there = {name: target for name, target in targets.items() if name in running}
        with contextlib.ExitStack() as undo:
            for layer in quantized:
                undo.enter_context(_unpacking(layer))
            found, inputs = _calibration_pass(simulation, model, there, work)
            shared.update({name: first for name, first in inputs.items() if name not in shared})
            counts = {"calibration": found} | {
                kind: _adapter_step(simulation, model, there, setup, work, kind) for kind in KINDS if kind in trained
            }
        if FULL in trained:
            counts[FULL] = _full_step(simulation, model, setup, work)
        return counts

    try:
        counts, block_bytes = _of_all_blocks(groups, count), 0
    except ObservationError:
        raise
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be estimated: its code goes by the values in tensors, and without its "
            "weights and a text there are none"
        ) from error
    _share_alike(groups, shared, targets)
    if FULL in trained:
        with keep_blocks({blocks: 1 for blocks in groups}), contextlib.suppress(*NOT_WITHOUT):
            block_bytes, _ = _full_step(simulation, model, setup, replace(work, labels=1))
    return Simulated(
        shapes={name: (target.d_out, target.d_in) for name, target in targets.items()},
        shared={name: shared[name] for name in targets},
        parameters=sum(p.numel() for p in model.parameters()),
        head=sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters()),
        whole=_weights(model, groups, [], None),
        kept=_weights(model, groups, quantized, setup.bits),
        step_bytes={stage: size for stage, (size, _) in counts.items()},
        step_flops={stage: flops for stage, (_, flops) in counts.items()},
        block_bytes=block_bytes,
    )


def _of_all_blocks(groups: list[Blocks], count: Callable[[], dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """What ``count`` finds of the whole model, from runs of one block of each group, and of two of one.

    All that is counted grows alike with each block of a group. Models whose own code does not run with fewer blocks are
    run whole.
    """
    many = [blocks for blocks in groups if len(blocks.keys) > 2]
    total, one = sum(len(blocks.keys) for blocks in groups), len(groups)
    if not many or (1 + len(many)) * one + len(many) >= total:
        return count()
    few = {blocks: 1 if blocks in many else len(blocks.keys) for blocks in groups}
    try:
        with keep_blocks(few):
            first = count()
        found = {stage: np.array(counted) for stage, counted in first.items()}
        for blocks in many:
            with keep_blocks(few | {blocks: 2}):
                second = count()
            for stage, counted in second.items():
                found[stage] += (len(blocks.keys) - 1) * (np.array(counted) - first[stage])
    except NOT_WITHOUT:
        return count()
    return {stage: (int(size), int(flops)) for stage, (size, flops) in found.items()}


def _share_alike(groups: list[Blocks], shared: dict[str, str], targets: dict[str, Target]) -> None:
    """Modules of blocks that were not run share inputs as those of the second block of their group do."""
    for names in (blocks.names() for blocks in groups):
        for block in names[2:]:
            for name in targets:
                if name not in shared and name.startswith(f"{block}."):
                    reader = shared[names[1] + name.removeprefix(block)]
                    shared[name] = reader.replace(f"{names[1]}.", f"{block}.", 1)


def _check_length(model: Any, work: Workload) -> None:
    """Refuse more tokens than there are learned positions: a table without data takes any index."""
    length = work.length
    if work.labels > length and not model.config.is_encoder_decoder:
        raise ValueError(f"labels={work.labels} of {length} tokens: a sample has no more labels than tokens")
    most, table = position_limit(model) or (length, "")
    if length > most:
        raise ValueError(f"length={length}: the model reads at most {most} tokens, by {table}: ask for fewer")


def _weights(model: nn.Module, groups: list[Blocks], quantized: list[nn.Module], bits: int | None) -> Weights:
    packed = {id(layer.weight): QUANTIZED[bits] for layer in quantized} if bits else {}

    def of(module: nn.Module) -> int:
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        return int(sum(tensor.numel() * packed.get(key, tensor.itemsize) for key, tensor in tensors.items()))

    total, blocks = of(model), [of(model.get_submodule(name)) for group in groups for name in group.names()]
    return Weights(total, total - sum(blocks), max(blocks, default=0))


def _quantized(model: nn.Module) -> list[nn.Module]:
    """The layers that bitsandbytes packs: the linear ones, but for what gives logits."""
    left_out = {id(output_embeddings(model)), *(id(model.get_submodule(name)) for name in head_modules(model))}
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and id(m) not in left_out]


@contextlib.contextmanager
def _unpacking(layer: Any) -> Iterator[None]:
    """Have a layer make its weight for each product, as packed ones do, and keep none for the backward pass."""
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
    simulation: Simulation, model: Any, targets: dict[str, Target], work: Workload
) -> tuple[tuple[int, int], dict[str, str]]:
    shared: dict[str, str] = {}
    with observe_gradients(model, targets, lambda name, inputs, gradients: None) as recorder:

        def act() -> None:
            loss = _loss(model, work)
            first: dict[int, str] = {}
            for name in targets:
                shared[name] = first.setdefault(id(recorder.inputs_of(name)[0]), name)
            loss.backward()
            recorder.clear()

        counted = simulation.measure(act)
    return counted, shared


def _adapter_step(
    simulation: Simulation, model: Any, targets: dict[str, Target], setup: Setup, work: Workload, kind: str
) -> tuple[int, int]:
    """A step with LoRA on every target, as PEFT computes it: in float32, beside a layer of whatever precision."""

    def act() -> None:
        model.requires_grad_(False)
        handles = [
            model.get_submodule(name).register_forward_hook(_lora(target, setup.rank, freeze_a=kind == "B"))
            for name, target in targets.items()
        ]
        try:
            _loss(model, work).backward()
        finally:
            for handle in handles:
                handle.remove()

    with _training(model, setup):
        return simulation.measure(act)


def _full_step(simulation: Simulation, model: Any, setup: Setup, work: Workload) -> tuple[int, int]:
    """A step of full fine-tuning, whose gradients are let go of one by one: `_bytes` counts them."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    parameters = list(model.parameters())
    handles = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(forget))
        with _training(model, setup):
            return simulation.measure(lambda: _loss(model, work).backward())
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)


@contextlib.contextmanager
def _training(model: Any, setup: Setup) -> Iterator[None]:
    """A model as it is trained."""
    model.train()
    if setup.gradient_checkpointing:
        model.config.use_cache = False  # it would be refused, and said so
        _checkpointing(model, "enable", {"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        model.eval()
        if setup.gradient_checkpointing:
            _checkpointing(model, "disable")


def _checkpointing(model: Any, verb: str, *options: dict[str, bool]) -> None:
    named = f"activation_checkpointing_{verb}"  # as transformers calls it lately, before: gradient checkpointing
    getattr(model, named if hasattr(model, named) else f"gradient_checkpointing_{verb}")(*options)


def _lora(target: Target, rank: int, *, freeze_a: bool) -> Callable[..., Tensor]:
    rank = min(rank, target.d_in, target.d_out)
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
    elif has_argument(model, "logits_to_keep"):
        inputs["logits_to_keep"] = work.labels
    logits = model(**inputs).logits
    if logits.ndim == 2:
        return functional.cross_entropy(logits.float(), ids[:, 0], reduction="sum")
    return functional.cross_entropy(logits[:, : work.labels].float().transpose(1, 2), labels, reduction="sum")
