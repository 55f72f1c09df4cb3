"""Peak memory and operations of each stage of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tlora.allocation.footprint import AS_BASE, BYTES, FULL, TRAINED_PARTS, uniform_footprints
from tlora.numerics.linalg import OVERSAMPLING
from tlora.resources.setup import Setup
from tlora.resources.simulated_model import CALIBRATION, SimulatedModel
from tlora.subspaces.task_subspaces import GROUP_BYTES

STAGES = {
    "weights": "",
    "calibration, covariances whole": CALIBRATION,
    "calibration, covariances sketched": CALIBRATION,
    "subspaces": "",
} | {f"training {kind}": kind for kind in (*TRAINED_PARTS, AS_BASE, FULL)}
"""The stages, and the kind of step that each runs, if it runs the model."""


def stage_bytes(steps: SimulatedModel, setup: Setup, name: str) -> int:
    """Return the peak memory of a stage."""
    kind = STAGES[name]
    if kind == FULL:
        step, shard, size = steps.run(setup, kind), steps.parameters // max(setup.gpus, 1), setup.precision.itemsize
        peak = max(step.peak, shard * size + steps.block_peak(setup))  # with most activations, with all gradients
        return steps.weights(None).bytes_per_gpu(setup.gpus) + peak + shard * setup.state_bytes(size)
    weights = steps.weights(setup.bits).bytes_per_gpu(setup.gpus)
    if name == "weights":
        return weights
    if name == "subspaces":
        return weights + _subspace_bytes(steps, setup, sketched=False)
    if kind == CALIBRATION:
        return weights + _calibration_bytes(steps, setup, sketched=name.endswith("sketched"))
    adapter = uniform_footprints(steps.shapes, setup.rank)[TRAINED_PARTS[kind != "B"]]
    states = setup.state_bytes(setup.adapter_dtype(kind).itemsize) * adapter.trainable_parameters
    head = (2 * BYTES + setup.state_bytes(BYTES)) * steps.head  # its float32 copy, the gradient and states
    return weights + steps.run(setup, kind).peak + states + head


def calibration_bytes(steps: SimulatedModel, setup: Setup, *, sketched: bool) -> int:
    """Return the peak memory of calibration and subspaces, with covariances whole or sketched."""
    needed = (count(steps, setup, sketched=sketched) for count in (_calibration_bytes, _subspace_bytes))
    return steps.weights(setup.bits).bytes_per_gpu(setup.gpus) + max(needed)


def _calibration_bytes(steps: SimulatedModel, setup: Setup, *, sketched: bool) -> int:
    return steps.run(setup, CALIBRATION).peak + _statistics_bytes(steps, setup, sketched=sketched)


def _statistics_bytes(steps: SimulatedModel, setup: Setup, *, sketched: bool) -> int:
    """Return the bytes of covariances and their means, of Fisher matrices, and of what sketches are drawn with."""
    fishers = [columns for _, columns in steps.shapes.values()] if setup.fisher else []
    wide, square = ([d for d in fishers if setup.is_sketched(d) == is_wide] for is_wide in (True, False))
    for name in steps.distinct:
        d = steps.shapes[name][1]
        (wide if (sketched or steps.is_one_of_many(name)) and setup.is_sketched(d) else square).append(d)
    means = sum(steps.shapes[name][1] * min(setup.samples, steps.shapes[name][1]) for name in steps.distinct)
    return BYTES * (sum(d**2 for d in square) + setup.sketch_size * (sum(wide) + sum(set(wide))) + means)


def _subspace_bytes(steps: SimulatedModel, setup: Setup, *, sketched: bool) -> int:
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
        return (
            _statistics_bytes(steps, setup, sketched=sketched) + bases + max(map(iterate_bytes, steps.shapes.values()))
        )

    def covariance_bytes(d: int) -> int:
        return BYTES * d * (setup.sketch_size if sketched and setup.is_sketched(d) else d)

    sizes = [iterate_bytes(shape) + covariance_bytes(shape[1]) for shape in steps.shapes.values()]
    return max(max(sizes), min(sum(sizes), GROUP_BYTES if setup.gpus == 1 else 0))


def stage_flops(steps: SimulatedModel, setup: Setup) -> dict[str, float]:
    """Return the floating-point operations of calibration and subspaces, of one GPU."""
    tokens = setup.samples * setup.length
    passes = steps.run(setup, CALIBRATION).flops * setup.samples / setup.batch_size
    scores = sum(2.0 * tokens * steps.share(n) * rows * columns for n, (rows, columns) in steps.shapes.items())

    def products(names: Iterable[str], *, sketched: bool) -> float:
        total = 0.0
        for name in names:
            d, count = steps.shapes[name][1], tokens * steps.share(name)
            is_wide = (sketched or steps.is_one_of_many(name)) and setup.is_sketched(d)
            total += count * d * (4.0 * setup.sketch_size if is_wide else 1.0 * d)  # of a whole one, one triangle
        return total

    passes += products(steps.shapes, sketched=True) if setup.fisher else 0.0
    width = setup.width + OVERSAMPLING
    flops = {
        "calibration, covariances whole": passes + scores + products(steps.distinct, sketched=False),
        "calibration, covariances sketched": passes + scores + products(steps.distinct, sketched=True),
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
