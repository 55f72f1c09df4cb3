"""What processes that calibrate together take, by how many there are, beside what would be ideal.

    python -m benchmarks.speed.scaling

One, two and four processes with one thread each: with whole models (data parallel), and with one that FSDP2 shards.
Processor time of the slowest process: each has its part of the samples and, where the model is sharded, of the modules'
decompositions. Ideal is one process's time divided by their number; where the models are whole, each process decomposes
all modules. Memory is the peak of the largest process while it calibrates, its resident memory less what it held before
there was a model, and beside it what `tlora.estimate` says. Eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import transformers
from torch import distributed
from torch.distributed.fsdp import fully_shard

import tlora
from benchmarks.speed.memory import CPU, LLAMA
from tlora.comparison.run import PeakMemory

BATCHES, BATCH_SIZE, LENGTH, RANK = 8, 8, 64, 8
WORK = {"samples": BATCHES * BATCH_SIZE, "length": LENGTH, "batch_size": BATCH_SIZE}
COUNTS = (1, 2, 4)
STAGES = ("calibration, covariances whole", "subspaces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, folder = arguments.measure
        _measure(kind == "sharded", Path(folder))
        return
    alone = _launched("whole", 1)
    rows = []
    for kind, count in [("whole", 1), *((kind, count) for kind in ("whole", "sharded") for count in COUNTS[1:])]:
        found = alone if count == 1 else _launched(kind, count)
        told = tlora.estimate(LLAMA, RANK, **WORK, gpus=count if kind == "sharded" else 0)
        for stage in STAGES:
            ideal = count if kind == "sharded" or stage == STAGES[0] else 1  # whole models: each decomposes all
            rows.append(
                {
                    "model": kind,
                    "processes": count,
                    "stage": stage,
                    "seconds": found[stage]["seconds"],
                    "ideal": alone[stage]["seconds"] / ideal,
                    "seconds / ideal": found[stage]["seconds"] * ideal / alone[stage]["seconds"],
                }
            )
            if stage == STAGES[0]:
                rows[-1] |= {"MB": found[stage]["bytes"] / 1e6, "estimated MB": told.bytes[stage] / 1e6}
    table = pd.DataFrame(rows)
    print(table.round(2).to_string(index=False, na_rep=""))


def _launched(kind: str, count: int) -> dict[str, dict[str, float]]:
    """The most of any process, by stage."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    # Tensors that are let go of leave the process at once, and not when the allocator sees fit.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "benchmarks.speed.scaling", "--measure", kind, folder]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ran.returncode:
            raise SystemExit(ran.stderr[-2000:])
        each = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    return {stage: {what: max(one[stage][what] for one in each) for what in each[0][stage]} for stage in STAGES}


def _measure(is_sharded: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    transformers.utils.logging.disable_progress_bar()
    tiny = _model({"num_hidden_layers": 1, "vocab_size": 50}, is_sharded=False)
    tlora.task_subspaces(tiny, _calibrated(tiny, distributed.get_world_size()), max_rank=RANK, progress=False)
    del tiny
    gc.collect()
    before = psutil.Process().memory_info().rss
    model = _model({}, is_sharded)
    found: dict[str, dict[str, float]] = {}
    result: Any = None
    for stage in STAGES:
        gc.collect()
        distributed.barrier()
        started = time.process_time()
        with PeakMemory(CPU) as peak:
            if result is None:
                result = _calibrated(model, BATCHES)
            else:
                tlora.task_subspaces(model, result, max_rank=4 * RANK, progress=False)
        found[stage] = {"seconds": time.process_time() - started, "bytes": (peak.bytes or 0) - before}
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def _model(changes: dict[str, Any], is_sharded: bool) -> Any:
    config = transformers.LlamaConfig(**LLAMA.to_diff_dict() | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if is_sharded:
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
    return model


def _calibrated(model: Any, count: int) -> tlora.Calibration:
    """On random tokens, the same in all processes: each takes its part."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, model.config.vocab_size, (BATCH_SIZE, LENGTH), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return tlora.calibrate(model, batches, progress=False)


if __name__ == "__main__":
    main()
