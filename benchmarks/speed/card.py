"""The whole pipeline at the shape of a large model with random weights: seconds and peaks, beside `tlora.estimate`.

    python -m benchmarks.speed.card --output card.json                        # LLaMA-2-7B on a card, in bfloat16
    python -m benchmarks.speed.card --config folder/config.json               # any other model's shape
    python -m benchmarks.speed.card --small                                   # every line of it, on the CPU

Calibration, subspaces, attaching, and a few steps of training TLoRA and LoRA, of which the seconds of one are told.
Nothing is downloaded. On a card a peak is what PyTorch allocated; on a CPU the process's resident memory, less what it
held before there was a model.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import tlora
from benchmarks.speed.stopwatch import Stages
from tlora.resources.matmul_speed import matmul_speed
from tlora.utils.packages import library_versions

SMALL = {
    "sizes": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8},
    "device": "cpu",
    "dtype": "float32",
    "rank": 8,
    "samples": 8,
    "length": 64,
    "steps": 3,
}


TRAINING = ["training B", "training A and B"]


def main() -> None:
    arguments = _arguments()
    config = AutoConfig.from_pretrained(arguments.config) if arguments.config else LlamaConfig(**arguments.sizes)
    work = {"samples": arguments.samples, "length": arguments.length, "batch_size": arguments.batch_size}
    on_a_card = arguments.device != "cpu"
    speed = matmul_speed(arguments.device, arguments.dtype)
    told = tlora.estimate(config, arguments.rank, **work, dtype=arguments.dtype, gpus=int(on_a_card), speed=speed)
    stages = Stages(arguments.device)
    _pipeline(config, arguments, stages)
    table = pd.DataFrame(stages.found).T
    table.loc[TRAINING, "seconds"] /= arguments.steps
    table["estimated_seconds"] = pd.Series(told.flops).div(speed)
    table["estimated_bytes"] = pd.Series(told.bytes)
    print((table / [1e9 if "bytes" in name else 1 for name in table]).round(2).to_string())
    if arguments.output:
        device = torch.cuda.get_device_name() if on_a_card else "cpu"
        about = {"device": device, "products_a_second": speed, "dtype": arguments.dtype, "rank": arguments.rank}
        about |= work | {"steps": arguments.steps, "config": config.to_diff_dict(), "versions": library_versions()}
        rows = json.loads(table.to_json(orient="index"))
        arguments.output.write_text(json.dumps(about | {"stages": rows}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a model's config.json, or its folder; LLaMA-2-7B's by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--covariance", choices=("dense", "sketch"), default="sketch")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    parser.add_argument("--small", action="store_true", help="on the CPU, at sizes that say nothing")
    arguments = parser.parse_args(namespace=argparse.Namespace(sizes={}))
    if arguments.small:
        vars(arguments).update(SMALL)
    return arguments


def _pipeline(config: Any, arguments: argparse.Namespace, stages: Stages) -> None:
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, arguments.dtype)).eval()
    ids = torch.randint(3, config.vocab_size, (arguments.samples, arguments.length))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part}
        for part in ids.split(arguments.batch_size)
    ]
    kept = {"dense": "whole", "sketch": "sketched"}[arguments.covariance]
    calibration = stages(
        f"calibration, covariances {kept}",
        lambda: tlora.calibrate(model, batches, covariance=arguments.covariance),
    )
    sensitivity = calibration.sensitivity
    allocation = tlora.allocate(sensitivity, arguments.rank)
    find = partial(tlora.task_subspaces, model, calibration, max_rank=allocation)
    subspaces = stages("subspaces", find)
    del calibration, find  # as large as the model
    uniform = tlora.allocate(sensitivity, arguments.rank, adapt_ranks=False, adapt_scales=False)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    adapted = stages("attach", lambda: tlora.attach(model, subspaces, allocation))
    training = {"max_steps": arguments.steps, "batch_size": arguments.batch_size, "evaluation_limit": 0}
    stages(TRAINING[0], lambda: tlora.train(adapted, rows, learning_rate=1e-4, **training))
    lora = tlora.attach(model, None, uniform, freeze_a=False, replace=True)
    stages(TRAINING[1], lambda: tlora.train(lora, rows, learning_rate=1e-4, **training))


if __name__ == "__main__":
    main()
