"""Plan: what calibrating and training a model will take, from its config alone."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor
from transformers import PretrainedConfig

from tlora.allocation.footprint import BYTES, Footprint, footprint
from tlora.calibration.calibration import Options
from tlora.models.loading import architecture_of, floating_dtype, load_config
from tlora.numerics.linalg import OVERSAMPLING
from tlora.rehearsal import KINDS, Rehearsal, Workload, rehearse
from tlora.results import Meta, Result
from tlora.utils.validation import as_names, positive, positive_int


@dataclass(frozen=True, repr=False, eq=False)
class ResourcePlan(Result):
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
        Trained parameters of a uniform plan, a classifier's head included: ``"B"`` alone, as TLoRA; ``"A and B"``, as
        LoRA.
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


def plan(
    model: str | os.PathLike[str] | PretrainedConfig,
    rank: int = 8,
    *,
    samples: int = 32,
    length: int = 512,
    batch_size: int = 8,
    labels: int | None = None,
    sketch_size: int = 256,
    dtype: str = "float32",
    num_labels: int | None = None,
    target_modules: str | Iterable[str] | None = None,
    speed: float | None = None,
    memory: float | None = None,
) -> ResourcePlan:
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
        Floating-point operations a second, for the seconds; ``tlora.planning.matmul_speed`` measures that of a device.
    memory : float, optional
        Bytes that there are, for what fits.

    Returns
    -------
    ResourcePlan

    Raises
    ------
    ValueError
        If a number is out of range, the samples are longer than the positions that the model has learnt, or it has no
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
    return ResourcePlan(
        shapes=seen.shapes,
        shared=seen.shared,
        parameters=seen.parameters,
        trainable={kind: adapter.trainable_parameters + seen.head for kind, adapter in adapters.items()},
        bytes=_bytes(seen, adapters, kept, _width(rank)),
        flops=_flops(seen, work, kept, _width(rank)),
        speed=speed,
        memory=None if memory is None else int(memory),
        meta=Meta(name or type(config).__name__, recipe=asked | {"target_modules": target_modules}, samples=samples),
    )


def _width(rank: int) -> int:
    """Directions that subspaces are computed up to: allocations give few modules more than four times the nominal."""
    return 4 * rank


def _bytes(seen: Rehearsal, adapters: dict[str, Footprint], kept: Options, width: int) -> dict[str, int]:
    distinct = [seen.shapes[name][1] for name in set(seen.shared.values())]
    whole = BYTES * sum(d**2 for d in distinct)
    sketched = BYTES * (
        sum(d * kept.sketch_size if kept.is_sketched(d) else d**2 for d in distinct)
        + sum(d * kept.sketch_size for d in set(distinct) if kept.is_sketched(d))  # what sketches are made with
    )
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
