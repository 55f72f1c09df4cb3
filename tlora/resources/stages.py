"""Peak memory and operations of each stage of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from tlora.allocation.footprint import AS_BASE, BYTES, FULL, TRAINED_PARTS, uniform_footprints
from tlora.numerics.linalg import OVERSAMPLING
from tlora.resources.setup import Setup
from tlora.resources.simulated_model import CALIBRATION, SimulatedModel
from tlora.subspaces.task_subspaces import GROUP_BYTES
from tlora.utils.defaults import CovarianceForm, StatisticsPlacement

Form = tuple[CovarianceForm, StatisticsPlacement]
ON_HOST = "calibration, covariances whole on the host"
FORMS: dict[str, Form] = {
    "calibration, covariances whole": ("dense", "device"),
    ON_HOST: ("dense", "host"),
    "calibration, covariances sketched": ("sketch", "device"),
}
"""Stages of calibration: the form of covariances, and where whole ones are summed; what changes the least first."""

STAGES = (
    {"weights": ""}
    | dict.fromkeys(FORMS, CALIBRATION)
    | {"subspaces": ""}
    | {f"training {kind}": kind for kind in (*TRAINED_PARTS, AS_BASE, FULL)}
)
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
        return weights + _subspace_bytes(steps, setup, ("dense", "device"))
    if kind == CALIBRATION:
        return weights + _calibration_bytes(steps, setup, FORMS[name])
    adapter = uniform_footprints(steps.shapes, setup.rank)[TRAINED_PARTS[kind != "B"]]
    states = setup.state_bytes(setup.adapter_dtype(kind).itemsize) * adapter.trainable_parameters
    head = (2 * BYTES + setup.state_bytes(BYTES)) * steps.head  # its float32 copy, the gradient and states
    return weights + steps.run(setup, kind).peak + states + head


def calibration_bytes(steps: SimulatedModel, setup: Setup, form: Form) -> int:
    """Return the peak memory of calibration and subspaces."""
    needed = (count(steps, setup, form) for count in (_calibration_bytes, _subspace_bytes))
    return steps.weights(setup.bits).bytes_per_gpu(setup.gpus) + max(needed)


def host_bytes(steps: SimulatedModel, setup: Setup) -> int:
    """Return the bytes of what is summed on the host if whole covariances are: these, their means, Fisher matrices."""
    steps.run(setup, CALIBRATION)
    return BYTES * (sum(d**2 for d in _whole_widths(steps, setup, "dense")) + _means(steps, setup))


def _calibration_bytes(steps: SimulatedModel, setup: Setup, form: Form) -> int:
    return steps.run(setup, CALIBRATION).peak + _statistics_bytes(steps, setup, form)


def _statistics_bytes(steps: SimulatedModel, setup: Setup, form: Form) -> int:
    """Return the bytes of covariances and their means, of Fisher matrices, and of what sketches are drawn with.

    Of whole ones on the host, what is on the device at a time: an eighth of the largest.
    """
    covariance, placement = form
    whole, sketched = _whole_widths(steps, setup, covariance), _sketched_widths(steps, setup, covariance)
    sketches = setup.sketch_size * (sum(sketched) + sum(set(sketched)))
    if placement == "host":
        return BYTES * (sketches + max(whole, default=0) ** 2 // 8)
    return BYTES * (sketches + sum(d**2 for d in whole) + _means(steps, setup))


def _means(steps: SimulatedModel, setup: Setup) -> int:
    return sum(steps.shapes[name][1] * min(setup.samples, steps.shapes[name][1]) for name in steps.distinct)


def _whole_widths(steps: SimulatedModel, setup: Setup, covariance: CovarianceForm) -> list[int]:
    """Return the widths of the covariances and Fisher matrices that are kept whole."""
    return [d for d, is_sketched in _widths(steps, setup, covariance) if not is_sketched]


def _sketched_widths(steps: SimulatedModel, setup: Setup, covariance: CovarianceForm) -> list[int]:
    return [d for d, is_sketched in _widths(steps, setup, covariance) if is_sketched]


def _widths(steps: SimulatedModel, setup: Setup, covariance: CovarianceForm) -> Iterator[tuple[int, bool]]:
    """Yield the width of each covariance and Fisher matrix, and whether it is sketched."""
    for _, d in steps.shapes.values() if setup.fisher else ():
        yield d, setup.is_sketched(d)
    for name in steps.distinct:
        d = steps.shapes[name][1]
        yield d, (covariance == "sketch" or steps.is_one_of_many(name)) and setup.is_sketched(d)


def _subspace_bytes(steps: SimulatedModel, setup: Setup, form: Form) -> int:
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
        return _statistics_bytes(steps, setup, form) + bases + max(map(iterate_bytes, steps.shapes.values()))

    def covariance_bytes(d: int) -> int:
        return BYTES * d * (setup.sketch_size if form[0] == "sketch" and setup.is_sketched(d) else d)

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
        stage: passes + scores + products(steps.distinct, sketched=covariance == "sketch")
        for stage, (covariance, _) in FORMS.items()
    }
    flops |= {
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
