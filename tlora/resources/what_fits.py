"""Ways to train an adapter in a given memory, the one to take first."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from tlora.allocation.footprint import AS_BASE, BYTES
from tlora.models.forward import position_limit
from tlora.resources.setup import Setup
from tlora.resources.simulated_model import SimulatedModel
from tlora.resources.stages import FORMS, Form, calibration_bytes, host_bytes, stage_bytes
from tlora.utils.defaults import BATCH_SIZE, CovarianceForm
from tlora.utils.text import size_text

COLUMNS = {
    "training": "trained part, as in the names of the stages",
    "gradient_checkpointing": "whether only the inputs of blocks are stored, in calibration and training",
    "batch_size": "samples at once",
    "gradient_accumulation_steps": "batches per optimizer step, which make up the given batch",
    "bits": "bits of a weight of the base's linear layers",
    "optim": "the optimizer",
    "gpus": "number of GPUs that share the base; 0: the CPU",
    "covariance": "form of the covariances in the calibration",
    "statistics": "where whole covariances are summed: beside the model (device), or on the host",
    "calibration_gigabytes": "peak memory (1e9 bytes) of calibration and subspaces, in batches of 8 samples or less",
    "gigabytes": "peak memory (1e9 bytes) of a training step",
    "activations": "part of it that is stored from the forward to the backward pass",
    "fits": "whether calibration and training fit in the given memory; None without",
    "most_samples": "most samples of the given length that fit in a training step; NaN without memory",
    "most_tokens": "most tokens of a sample that fit in a training step with this batch; NaN without memory",
    "teraflops": "1e12 floating-point operations of an optimizer step",
    "seconds": "time of an optimizer step at the given speed; NaN without",
    "costs": "what this way gives up, compared with LoRA with the given arguments",
}
"""Columns of the table, and what they mean."""

GPU_COUNTS = (2, 4, 8, 16, 32, 64)
"""Numbers of GPUs to propose."""


def what_fits(steps: SimulatedModel, setup: Setup, memory: float | None, speed: float | None) -> pd.DataFrame:
    """Return ways to train an adapter, by trained part and gradient checkpointing: see `COLUMNS`.

    Each is there as asked and, if that does not fit, with the first of `_changes` by which it does. Ways that fit come
    first, sorted by what they change (GPUs, optimizer, type of the adapter, bits) and then by operations; those that do
    not fit follow, sorted by memory.
    """
    ways = [
        (kind, replace(setup, gradient_checkpointing=checkpointing))
        for kind, checkpointing in itertools.product(setup.adapters, (False, True))
        if steps.model.supports_gradient_checkpointing or not checkpointing
    ]
    if memory is not None:
        for kind, asked in tuple(ways):
            changed = _change_until_it_fits(steps, asked, kind, memory)
            ways += [] if changed in (asked, None) else [(kind, changed)]
    rows = [_row(steps, setup, way, kind, memory, speed) for kind, way in ways]

    def price(row: dict[str, Any]) -> tuple[float, ...]:
        if row["fits"] is False:
            return 1, max(row["gigabytes"], row["calibration_gigabytes"])
        return 0, row["gpus"], row["optim"] != setup.optim, row["training"] == AS_BASE, -row["bits"], row["teraflops"]

    return pd.DataFrame(sorted(rows, key=price), columns=list(COLUMNS))


def _row(
    steps: SimulatedModel, asked: Setup, way: Setup, kind: str, memory: float | None, speed: float | None
) -> dict[str, Any]:
    step, batches = steps.run(way, kind), asked.batch_size // way.batch_size
    (covariance, placement), calibration = _calibration(steps, way, kind, memory)
    training = stage_bytes(steps, way, f"training {kind}")
    samples, tokens = (math.nan, math.nan) if memory is None else _largest(steps, way, kind, memory)
    values = {
        "training": kind,
        "gradient_checkpointing": way.gradient_checkpointing,
        "batch_size": way.batch_size,
        "gradient_accumulation_steps": batches,
        "bits": way.bits or 8 * way.precision.itemsize,
        "optim": way.optim,
        "gpus": way.gpus,
        "covariance": covariance,
        "statistics": placement,
        "calibration_gigabytes": calibration / 1e9,
        "gigabytes": training / 1e9,
        "activations": step.stored / 1e9,
        "fits": None if memory is None else max(calibration, training) <= memory,
        "most_samples": samples,
        "most_tokens": tokens,
        "teraflops": batches * step.flops / 1e12,
        "seconds": math.nan if speed is None else batches * step.flops / speed,
    }
    costs = [*_costs(asked, way, kind, covariance)]
    if placement == "host":
        size = size_text(host_bytes(steps, _as_calibrated(way, kind)))
        costs.append(f"{size} of covariances are summed in the host's memory")
    return values | {"costs": "; ".join(costs)}


def _costs(asked: Setup, way: Setup, kind: str, covariance: CovarianceForm) -> Iterator[str]:
    """Yield what a way gives up, in words."""
    if kind == "B":
        yield "A is not trained"
    if kind == AS_BASE:
        yield "small steps of the adapter are rounded away"
    if way.gradient_checkpointing:
        yield "calibration and each step run the forward pass twice"
    if way.batch_size < asked.batch_size:
        yield "small batches leave a GPU idle"
    if way.bits != asked.bits:
        yield f"the base is rounded to {way.bits} bits"
    if way.optim != asked.optim:
        yield "optimizer states are rounded to 8 bits and come from the host"
    if way.gpus != asked.gpus:
        yield f"{way.gpus} GPUs"
    if covariance == "sketch":
        yield f"{way.sketch_size} columns of each covariance are kept"


def _as_calibrated(way: Setup, kind: str) -> Setup:
    """Return the setup as `tlora run` calibrates.

    It has batches of at most the default size, and for LoRA, which starts from a random A, no Fisher matrices.
    """
    return replace(way, batch_size=min(way.batch_size, BATCH_SIZE), fisher=way.fisher and kind == "B")


def _calibration(steps: SimulatedModel, way: Setup, kind: str, memory: float | None) -> tuple[Form, int]:
    """Return the first form of covariances that fits, else the smallest, and the peak of calibration and subspaces.

    The host is taken to have as much memory for covariances as a GPU has.
    """
    way = _as_calibrated(way, kind)
    has_host = way.gpus > 0 and memory is not None and host_bytes(steps, way) <= memory
    forms = [form for form in FORMS.values() if form[1] == "device" or has_host]
    sizes = {form: calibration_bytes(steps, way, form) for form in forms}
    fitting = [form for form in forms if memory is None or sizes[form] <= memory]
    form = fitting[0] if fitting else min(forms, key=sizes.__getitem__)
    return form, sizes[form]


def _change_until_it_fits(steps: SimulatedModel, asked: Setup, kind: str, memory: float) -> Setup | None:
    """Return the setup as asked, or with the first changes by which calibration and training fit, if any do."""

    def fits(way: Setup) -> bool:
        if stage_bytes(steps, way, "weights") > memory:  # before anything is simulated
            return False
        return max(_calibration(steps, way, kind, memory)[1], stage_bytes(steps, way, f"training {kind}")) <= memory

    divisors = [size for size in range(asked.batch_size, 0, -1) if asked.batch_size % size == 0]
    for changed in _changes(asked):
        ways = [replace(changed, batch_size=size) for size in divisors]
        first = bisect.bisect_left(ways, True, key=fits)
        if first < len(ways):
            return ways[first]
    return None


def _changes(asked: Setup) -> Iterator[Setup]:
    """Yield what to change beyond the batch, the cheapest first; several GPUs need no rounding of the base.

    What `tlora run` has options for comes first.
    """
    optimizers = [asked.optim, "paged_adamw_8bit"] if asked.gpus and asked.state_bytes(BYTES) else [asked.optim]
    for gpus in (asked.gpus, *(count for count in GPU_COUNTS if count > asked.gpus > 0)):
        for optim in optimizers:
            for bits in (None, 4) if asked.bits is None and gpus == asked.gpus else (asked.bits,):
                yield replace(asked, gpus=gpus, optim=optim, bits=bits)


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
    peak, wider, longer = (stage_bytes(steps, size, f"training {kind}") for size in sizes)
    once, twice, room = wider - peak, longer - 2 * peak + wider, max(memory - 2 * peak + wider, 0)
    constant, quadratic = max(2 * once - twice, 0), max(twice - 2 * once, 0) / 2
    linear, left = once - constant - quadratic, max(room - constant, 0)
    times = 2 * left / (linear + math.sqrt(linear**2 + 4 * quadratic * left)) if left else 0
    longest, _ = position_limit(steps.model) or (math.inf, "")
    length = int(min(longest, setup.length * times))
    if length > 2 * setup.length:  # attention may have become a larger part
        there = replace(setup, length=length, labels=length if setup.labels == setup.length else setup.labels)
        if stage_bytes(steps, there, f"training {kind}") > 1.05 * memory:
            length = _largest(steps, there, kind, memory)[1]
    return int(setup.batch_size * room / once), length
