"""How long a widget takes from a value set to the bytes of its new picture, for the 224 modules of LLaMA-2-7B.

    python -m benchmarks.speed.widgets

Scores and spectra are drawn at random in the shapes of the model; what they hold does not change how long it takes.
Each figure is a median over the moves of one control: time on the clock, and time of this process's CPU, which other
work on the machine changes less. The most a move may take is 100 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

import viz
from tests.helpers.sensitivities import llama_sensitivity
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.subspaces import Subspaces

RANK = 64
LIMIT = 0.1
CHANGE = "change since the kept plan"


def spectrum(modules: Sensitivity, generator: np.random.Generator) -> Spectrum:
    """Power laws over all input dimensions; q, k and v share an input, and so do gate and up."""
    inputs = {n: n.replace("k_proj", "q_proj").replace("v_proj", "q_proj") for n in modules.names}
    inputs = {n: source.replace("up_proj", "gate_proj") for n, source in inputs.items()}
    widths = {n: d_in for n, (_, d_in) in modules.shapes.items()}
    once = {n: torch.arange(1, widths[n] + 1).float() ** -generator.uniform(0.5, 2) for n in set(inputs.values())}
    values = {n: once[source] for n, source in inputs.items()}
    traces = {n: float(v.sum()) for n, v in values.items()}
    return Spectrum(modules.targets, values, traces, widths, inputs, "covariance", modules.meta)


def subspaces(modules: Sensitivity, kind: str, generator: torch.Generator) -> Subspaces:
    """Random bases of rank 64; they are as wide as their rank is times four, for the explorers never look at them."""
    bases = {n: torch.linalg.qr(torch.randn(4 * RANK, RANK, generator=generator)).Q.T for n in modules.names}
    falling = 1 / torch.arange(1, RANK + 1).float()
    return Subspaces(
        targets=modules.targets,
        kind=kind,
        max_rank=RANK,
        bases=bases,
        singular_values=dict.fromkeys(bases, falling),
        numerical_rank=dict.fromkeys(bases, RANK),
        row_variance=dict.fromkeys(bases, falling),
        traces=dict.fromkeys(bases, float(2 * falling.sum())),
        fingerprints=dict.fromkeys(bases, torch.ones(16)),
        meta=modules.meta,
    )


def explorers() -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Every explorer, and values to set control by control."""
    modules, generator = llama_sensitivity(), torch.Generator().manual_seed(0)
    wc, w, random = (subspaces(modules, kind, generator) for kind in ("wc", "w", "random"))
    allocation = viz.AllocationExplorer(wc, modules)
    by_kind = viz.SpectrumExplorer(spectrum(modules, np.random.default_rng(0)), wc, random)
    alignment = viz.AlignmentExplorer(wc, w, random, progress=False)
    return {
        "AllocationExplorer": (
            allocation,
            {
                "rank": list(range(9, 41)),
                "temperature": [step / 20 for step in range(20)],
                "budget": ["parameters", "ranks"] * 5,
                "scaling": ["allocated", "nominal"] * 5,
                "min_rank": list(range(10, 30)),
                "view": [CHANGE, "ranks"] * 5,
                "set_rank": list(range(10, 30)),
                "way": ["exclude", "pin", "by score"] * 5,
            },
        ),
        "SpectrumExplorer": (
            by_kind,
            {
                "layer": list(range(1, 32)),
                "rank": list(range(9, 41)),
                "projection": ["k_proj", "o_proj", "down_proj"] * 4,
                "kind": ["wc", "random", "covariance"] * 4,
            },
        ),
        "AlignmentExplorer": (alignment, {"rank": list(range(9, 41)), "right": ["random", "w"] * 5}),
    }


def measured(explorer: Any, control: str, values: list[Any]) -> list[tuple[float, float]]:
    """Seconds on the clock and of the CPU for each value."""
    times = []
    for value in values:
        picture, wall, cpu = explorer.image.value, time.perf_counter(), time.process_time()
        explorer.controls[control].value = value
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        assert explorer.image.value != picture, (control, value, explorer.message.value)
    return times


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    print(f"{'widget':20} {'control':12} {'moves':>5} {'clock':>9} {'CPU':>9} {'slowest':>9}")
    slow = []
    for name, (explorer, moves) in explorers().items():
        for control, values in moves.items():
            times = measured(explorer, control, values)
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            worst = max(wall for wall, _ in times)
            print(
                f"{name:20} {control:12} {len(times):5} {1e3 * wall:6.1f} ms {1e3 * cpu:6.1f} ms {1e3 * worst:6.1f} ms"
            )
            if wall > LIMIT:
                slow.append(f"{name} {control}")
    print("every median is within 100 ms" if not slow else f"beyond 100 ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()
