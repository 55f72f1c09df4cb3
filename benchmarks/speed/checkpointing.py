"""What a calibration and a training step hold with and without gradient checkpointing.

    python -m benchmarks.speed.checkpointing                            # a few blocks of five models, on the CPU
    python -m benchmarks.speed.checkpointing --only 0                   # one of the cases, numbered from 0
    python -m benchmarks.speed.checkpointing --device cuda --times 32   # on a GPU, with 32 times the rows

- peak: the most that PyTorch has allocated during a calibration of one batch, in addition to the model; covariances
  are sketched. On a CPU it is counted by the profiler.
- estimated / peak: what `tlora.estimate` says in addition to the weights, divided by it.
- / step: the peak without the statistics, divided by that of a checkpointed training step of the same batch.
- step: the most during a training step of that batch, with `A` frozen, and what `tlora.estimate` says divided by it.
- seconds: of one calibration, the median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from typing import Any

import pandas as pd
import torch

import tlora
from benchmarks.speed.stopwatch import now
from tests.helpers.training_steps import (
    CASES,
    LABELS,
    MIXTURES,
    RANK,
    TLORA,
    Case,
    Stepper,
    allocated_peak,
    random_batch,
    random_model,
    selected,
)

SKETCH = 64
RUNS = [
    (case, dtype)
    for case in (*CASES[:2], CASES[2].times(4), CASES[3].times(4), *MIXTURES)
    for dtype in ("float32", "bfloat16")
]


def table(case: Case, dtype: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row without and one with checkpointing."""
    model = random_model(case, dtype, arguments.device)
    batch: dict[str, Any] = random_batch(case.rows, case.length, LABELS, case.config.vocab_size)
    batch["attention_mask"][:, 0] = 0
    targets = selected(model)
    steps = {each: Stepper(model, case, TLORA, checkpointing=each).peak_bytes() for each in (False, True)}
    lines = []
    for checkpointing, step in steps.items():

        def calibrate(checkpointing: bool = checkpointing) -> tlora.Calibration:
            options: dict[str, Any] = {"covariance": "sketch", "sketch_size": SKETCH, "target_modules": targets}
            options["gradient_checkpointing"] = checkpointing
            return tlora.calibrate(model, [batch], **options, progress=False)

        covariances = calibrate().covariances.values()
        kept = sum(each.total.nbytes + each.means.rows.nbytes for each in covariances if each.means is not None)
        peak = allocated_peak(calibrate, model.device)
        times = []
        for _ in range(arguments.repeats):
            started = now(arguments.device)
            calibrate()
            times.append(now(arguments.device) - started)
        work = {"samples": case.rows, "batch_size": case.rows, "length": case.length, "labels": LABELS, "dtype": dtype}
        options = {"gradient_checkpointing": checkpointing, "gpus": int(arguments.device != "cpu")}
        said = tlora.estimate(case.config, RANK, **work, **options, sketch_size=SKETCH, target_modules=targets).bytes
        estimated = said["calibration, covariances sketched"] - said["weights"]
        line = {"checkpointing": checkpointing, "peak, MB": peak / 1e6, "estimated / peak": estimated / peak}
        line |= {"/ step": (peak - kept) / steps[True], "seconds": statistics.median(times), "step, MB": step / 1e6}
        lines.append(line | {"estimated / step": (said["training B"] - said["weights"]) / step})
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases, from 0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--times", type=int, default=1, help="times the rows of a case")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)  # used by PEFT
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    for number in arguments.only or range(len(RUNS)):
        case, dtype = RUNS[number][0].times(arguments.times), RUNS[number][1]
        blocks = case.sizes["num_hidden_layers"]
        print(f"\n{blocks} blocks of {case.name} in {dtype}, {case.rows} rows of {case.length} tokens:")
        print(table(case, dtype, arguments).round(2).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
