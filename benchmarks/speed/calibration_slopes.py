"""Cost against samples, tokens, width and rank, as slopes on logarithmic axes, and `tlora estimate`."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import transformers

import tlora
from benchmarks.speed.stopwatch import now

CALIBRATION, SUBSPACES = "calibration, covariances whole", "subspaces"


def llama(width: int, layers: int = 1) -> transformers.LlamaConfig:
    """Blocks of the proportions of LLaMA-2-7B, with few words."""
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_attention_heads=max(width // 128, 1),
        num_hidden_layers=layers,
        vocab_size=512,
        pad_token_id=0,
    )


@dataclass(frozen=True)
class Point:
    """What is calibrated: one block of a Llama with random weights, samples one by one."""

    width: int
    samples: int = 4
    tokens: int = 128
    rank: int = 8


@dataclass
class Curve:
    """The seconds of one stage along one axis."""

    axis: str
    stage: str
    at: list[int] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)

    def slope(self, seconds: list[float]) -> float:
        """Of a straight line through the logarithms."""
        return float(np.polyfit(np.log(self.at), np.log(seconds), 1)[0])

    def __str__(self) -> str:
        ratio = statistics.median(m / p for m, p in zip(self.measured, self.planned, strict=True))
        return (
            f"{self.stage.partition(',')[0]} against {self.axis}: slope {self.slope(self.measured):.2f}, planned "
            f"{self.slope(self.planned):.2f}; {ratio:.2f} x the planned seconds in the median"
        )


def slopes(arguments: argparse.Namespace) -> None:
    """Each axis over a factor of eight or more, the others at a quarter of the width, 4 samples, 128 tokens, rank 8."""
    base, speed = Point(arguments.width // 4), _speed(arguments.device)
    print(f"blocks of a Llama in float32 on {arguments.device}, products at {speed / 1e9:.0f} gigaflops:")
    axes: dict[str, list[int]] = {
        "samples": [2, 4, 8, 16],
        "tokens": [32, 64, 128, 256, 512],
        "width": [arguments.width // 8, arguments.width // 4, arguments.width // 2, arguments.width],
        "rank": [2, 4, 8, 16, 32],
    }
    for axis, values in axes.items():
        stages = [SUBSPACES] if axis == "rank" else [CALIBRATION, SUBSPACES] if axis == "width" else [CALIBRATION]
        found = {stage: Curve(axis, stage) for stage in stages}
        for value in values:
            point = replace(base, **{axis: value})
            seconds, planned = _measured(point, arguments.device, arguments.repeats), _planned(point, speed)
            for stage, curve in found.items():
                curve.at.append(value)
                curve.measured.append(seconds[stage])
                curve.planned.append(planned[stage])
        print(*found.values(), sep="\n", flush=True)


def _speed(device: str, size: int = 2048) -> float:
    """Floating-point operations per second of a product, as `tlora.estimate.matmul_speed`, by the time of this file."""
    a = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(5):
        start = now(device)
        _ = a @ a
        seconds.append(now(device) - start)
    return 2 * size**3 / min(seconds)


def _measured(point: Point, device: str, repeats: int) -> dict[str, float]:
    """Medians over the repeats; one goes before, to warm up."""
    with torch.device(device):
        model = transformers.LlamaForCausalLM(llama(point.width)).eval()
        ids = torch.randint(3, 512, (point.samples, 1, point.tokens))
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    rounds: dict[str, list[float]] = {CALIBRATION: [], SUBSPACES: []}
    for turn in range(repeats + 1):
        start = now(device)
        calibration = tlora.calibrate(model, batches, progress=False)
        between = now(device)
        tlora.task_subspaces(model, calibration, max_rank=4 * point.rank, progress=False)  # as allocations count on
        if turn:
            rounds[CALIBRATION].append(between - start)
            rounds[SUBSPACES].append(now(device) - between)
    return {stage: statistics.median(seconds) for stage, seconds in rounds.items()}


def _planned(point: Point, speed: float) -> dict[str, float]:
    estimated = tlora.estimate(
        llama(point.width), point.rank, samples=point.samples, length=point.tokens, batch_size=1, speed=speed
    ).to_frame()
    return dict(zip(estimated.stage, estimated.seconds, strict=True))
