"""What the initialization costs: calibration and subspaces, beside the plain passes and the full SVD, in one run.

    python benchmarks/speed/initialization.py --model smollm2-135m --task family_relationships

Each repeat times both sides right after each other and gives one ratio: ratios survive a noisy machine better than
seconds do. The median is given, with the smallest and the largest. Six minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import tlora
from tlora.models.weights import weight


def main() -> None:
    arguments = _arguments()
    model, tokenizer = tlora.load_model(arguments.model)
    task = tlora.load_task(arguments.task, tokenizer)
    batches = task.calibration(arguments.samples)
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    print(
        f"{arguments.model} on {arguments.task}: {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(lengths)} in all, {torch.get_num_threads()} threads, {arguments.repeats} repeats"
    )
    calibration = tlora.calibrate(model, batches, progress=False)  # also warms up
    _compare(
        "calibration / plain forward and backward with weight gradients",
        lambda: tlora.calibrate(model, batches, progress=False),
        lambda: _passes(model, batches),
        arguments.repeats,
    )
    few = tlora.calibrate(model, batches[:1], target_modules=_some_layers(calibration), progress=False)
    for full in (True, False):
        _compare(
            f"full SVD (full_matrices={full}) / subspaces up to rank {arguments.max_rank}",
            lambda full=full: _full_svd(model, few, full),
            lambda: tlora.task_subspaces(model, few, max_rank=arguments.max_rank, progress=False),
            arguments.repeats,
        )
    _print_energy(model, few, arguments.max_rank)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="family_relationships")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def _some_layers(calibration: tlora.Calibration) -> list[str]:
    """Modules of the first, middle and last block: their shapes and spectra stand for the rest."""
    layers = calibration.sensitivity.layers
    last = max(layers.values())
    return [name for name, layer in layers.items() if layer in (0, last // 2, last)]


def _passes(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> None:
    model.requires_grad_(True)
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad()
    model.requires_grad_(False)


def _full_svd(model: torch.nn.Module, calibration: tlora.Calibration, full: bool) -> None:
    for name in calibration.names:
        product = weight(model.get_submodule(name)) @ calibration.covariance[name].dense()
        torch.linalg.svd(product, full_matrices=full)


def _compare(title: str, one: Callable[[], object], other: Callable[[], object], repeats: int) -> None:
    ratios, seconds = [], ([], [])
    for _ in range(repeats):
        for function, times in zip((one, other), seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        ratios.append(seconds[0][-1] / seconds[1][-1])
    print(
        f"{title}: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{statistics.median(seconds[0]):.2f} s / {statistics.median(seconds[1]):.2f} s"
    )


def _print_energy(model: torch.nn.Module, calibration: tlora.Calibration, max_rank: int) -> None:
    subspaces = tlora.task_subspaces(model, calibration, max_rank=max_rank, progress=False)
    worst = 1.0
    for name in calibration.names:
        product = weight(model.get_submodule(name)).double() @ calibration.covariance[name].dense().double()
        best = torch.linalg.svdvals(product).square()
        rows = subspaces.bases[name].double()
        captured = (product @ rows.T).square().sum(0).cumsum(0) / best[: len(rows)].cumsum(0)
        worst = min(worst, float(captured.min()))
    print(
        f"captured energy of the subspaces, smallest over {len(calibration.names)} modules and all ranks: {worst:.6f}"
    )


if __name__ == "__main__":
    main()
