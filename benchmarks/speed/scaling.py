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
from typing import Any

import pandas as pd
import torch
import transformers
from torch import distributed

import tlora
from benchmarks.speed.stopwatch import Stages
from tests.helpers.process_memory import LLAMA, said_by, shard
from tests.helpers.training_steps import random_batch

BATCHES, BATCH_SIZE, LENGTH, RANK = 8, 8, 64, 8
WORK = {"samples": BATCHES * BATCH_SIZE, "length": LENGTH, "batch_size": BATCH_SIZE}
COUNTS = (1, 2, 4)
STAGES = ("calibration, covariances whole", "subspaces")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        _measure(arguments.measure)
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
    each = list(map(json.loads, said_by("benchmarks.speed.scaling", "--measure", kind, processes=count)))
    return {stage: {what: max(one[stage][what] for one in each) for what in each[0][stage]} for stage in STAGES}


def _measure(kind: str) -> None:
    """Print the stages of this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo")
    transformers.utils.logging.disable_progress_bar()
    tiny = _model({"num_hidden_layers": 1, "vocab_size": 50})
    tlora.task_subspaces(tiny, _calibrated(tiny, distributed.get_world_size()), max_rank=RANK, progress=False)
    del tiny
    gc.collect()
    stages, model = Stages(), _model({})
    if kind == "sharded":
        shard(model)
    distributed.barrier()
    calibration = stages(STAGES[0], lambda: _calibrated(model, BATCHES))
    distributed.barrier()
    stages(STAGES[1], lambda: tlora.task_subspaces(model, calibration, max_rank=4 * RANK, progress=False))
    print(json.dumps(stages.found))
    distributed.destroy_process_group()


def _model(changes: dict[str, Any]) -> Any:
    config = transformers.LlamaConfig(**LLAMA.to_diff_dict() | changes)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _calibrated(model: Any, count: int) -> tlora.Calibration:
    """On random tokens, the same in all processes: each takes its part."""
    batches = [random_batch(BATCH_SIZE, LENGTH, LENGTH, model.config.vocab_size) for _ in range(count)]
    return tlora.calibrate(model, batches, progress=False)


if __name__ == "__main__":
    main()
