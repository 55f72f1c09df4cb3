"""Two processes that calibrate together, beside one that does it alone: time, and whether they find the same."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tlora

LAUNCHERS = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}


def processes(arguments: argparse.Namespace) -> None:
    """One after the other, one thread each; the first round's results are compared."""
    if arguments.measure:
        _measure(arguments.samples, Path(arguments.measure))
        return
    clock, processor = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.repeats):
            alone, both = (_launched(n, arguments.samples, Path(folder, f"{turn}-{n}")) for n in LAUNCHERS)
            # the work is done when the slower of them is
            clock.append(max(each["clock"] for each in both) / alone[0]["clock"])
            processor.append(max(each["processor"] for each in both) / alone[0]["processor"])
        found = [tlora.Calibration.load(Path(folder, name)) for name in ("0-1/0", "0-2/0", "0-2/1")]
    print(f"SmolLM2-135M, {arguments.samples} samples, two processes / one, one thread each:")
    for label, ratios in (("clock", clock), ("processor time of the slower", processor)):
        print(f"  {label}: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"  largest relative difference: {max(_difference(found[0], each) for each in found[1:]):.1e}")


def _launched(count: int, samples: int, folder: Path) -> list[dict[str, float]]:
    folder.mkdir()
    options = ["-m", "benchmarks.speed.calibration", "processes", "--samples", str(samples), "--measure", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *LAUNCHERS[count], *options], check=True, env=environment, capture_output=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def _measure(samples: int, folder: Path) -> None:
    """Calibrate, and write down the seconds and the result by the number of this process."""
    model, tokenizer = tlora.load_model("smollm2-135m", dtype="float32")
    task = tlora.load_task("family_relationships", tokenizer)
    batches, warm_up = task.calibration(samples, batch_size=2), task.calibration(2, batch_size=1)
    tlora.calibrate(model, warm_up, progress=False)  # they also wait for each other here
    start, started = time.perf_counter(), time.process_time()
    found = tlora.calibrate(model, batches, progress=False)
    seconds = {"clock": time.perf_counter() - start, "processor": time.process_time() - started}
    rank = os.environ.get("RANK", "0")
    found.save(folder / rank)
    (folder / f"{rank}.json").write_text(json.dumps(seconds))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _difference(one: tlora.Calibration, other: tlora.Calibration) -> float:
    """Largest of the relative differences of covariances, in Frobenius norm, and of scores."""
    pairs = [(other.covariances[name].dense(), c.dense()) for name, c in one.covariances.items()]
    pairs.append((other.sensitivity.per_sample, one.sensitivity.per_sample))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
