"""Estimate the memory and time of calibrating and training a model from its config alone."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pandas as pd
from transformers import PretrainedConfig

from tlora.allocation.footprint import AS_BASE, FULL, uniform_footprints
from tlora.models.forward import position_limit
from tlora.models.loading import choose_architecture, load_config
from tlora.models.record import record_of
from tlora.models.targets import target_modules as select_targets
from tlora.resources.setup import QUANTIZED_BYTES, Setup
from tlora.resources.simulated_model import SimulatedModel
from tlora.resources.simulation import simulation_mode
from tlora.resources.stages import ON_HOST, STAGES, stage_bytes, stage_flops
from tlora.resources.what_fits import COLUMNS, what_fits
from tlora.results import Meta, Result
from tlora.utils.defaults import BATCH_SIZE, DTYPE, LENGTH, OPTIMIZER, RANK, SAMPLES, SKETCH_SIZE
from tlora.utils.validation import check_arguments, list_names, require_positive


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
        Floating-point operations per second, for the seconds.
    memory : int or None
        Available bytes.
    what_fits : pandas.DataFrame
        Ways to calibrate and train an adapter, with and without gradient checkpointing in both. With ``memory``, those
        that do not fit as asked are also listed with the first changes by which they do (smaller batches, a base of 4
        bits, paged optimizer states, more GPUs), and the first row is the one to take, if any fits. See
        ``what_fits_columns``.
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
    what_fits: pd.DataFrame
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "stage": "stage of the pipeline",
        "gigabytes": "peak memory (1e9 bytes), including weights; of one GPU if there are several",
        "activations": "part of the peak (1e9 bytes) that is stored from the forward to the backward pass",
        "teraflops": "1e12 floating-point operations; for training, of one step",
        "seconds": "time at the given speed; NaN without",
        "fits": "whether it fits in the given memory; None without",
    }
    what_fits_columns: ClassVar[dict[str, str]] = COLUMNS

    def to_frame(self) -> pd.DataFrame:
        """Return one row per stage; see ``columns``."""
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
        peak = max(size for stage, size in self.bytes.items() if stage != f"training {FULL}")
        return (
            f"{self.parameters:,} parameters, {len(self.shapes)} modules with {len(set(self.shared.values()))} "
            f"distinct inputs of {self.meta.model}, at most {peak / 1e9:.3g} GB"
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
        Whether calibration and training keep only the inputs of blocks, and compute the rest twice.
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
        Floating-point operations per second of one GPU, for the seconds; ``tlora.resources.matmul_speed.matmul_speed``
        measures that of a device.
    memory : float, optional
        Bytes of one GPU, for what fits.

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
    check_arguments(estimate, locals())
    speed = None if speed is None else require_positive(speed, "speed")
    memory = None if memory is None else require_positive(memory, "memory")
    config = copy.deepcopy(model) if isinstance(model, PretrainedConfig) else load_config(model)
    name = config.name_or_path if isinstance(model, PretrainedConfig) else str(model)
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
        if gpus == 0:
            del stages[ON_HOST]
        simulated = {name: steps.run(setup, kind) for name, kind in stages.items() if kind}
        peaks = {name: stage_bytes(steps, setup, name) for name in stages}
        flops = {name: float(step.flops) for name, step in simulated.items()} | stage_flops(steps, setup)
        ways = what_fits(steps, setup, memory, speed)
    return ResourceEstimate(
        shapes=steps.shapes,
        shared={name: steps.shared[name] for name in steps.shapes},
        parameters=steps.parameters,
        trainable={
            kind: adapter.trainable_parameters + steps.head
            for kind, adapter in uniform_footprints(steps.shapes, setup.rank).items()
        },
        bytes=peaks,
        activations={name: step.stored for name, step in simulated.items()},
        flops={name: flops[name] for name in stages if name in flops},
        speed=speed,
        memory=None if memory is None else int(memory),
        what_fits=ways,
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


def _check_length(model: Any, setup: Setup) -> None:
    """Refuse more tokens than there are learned positions: a table without data accepts any index."""
    length = setup.length
    if setup.labels > length and not model.config.is_encoder_decoder:
        raise ValueError(f"labels={setup.labels} of {length} tokens: a sample has no more labels than tokens")
    limit, table = position_limit(model) or (length, "")
    if length > limit:
        raise ValueError(f"length={length}: the model reads at most {limit} tokens, by {table}")
