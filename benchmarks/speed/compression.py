"""What `tlora.compress` costs on an adapter of LLaMA-2-7B's shape: 224 modules of rank 64, on one thread.

    python -m benchmarks.speed.compression            # by the weights, and on the task from a sketched calibration

Each in a process of its own, from folder to folder: processor time, and the most memory that the process held. The
numbers in adapter and calibration are random, as sizes alone decide what it costs. 1.3 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import tlora
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance, SketchedCovariance
from tlora.calibration.sample_means import SampleMeans
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.targets import Target
from tlora.numerics.sketching import SketchingMatrices
from tlora.results import Meta
from tlora.utils.peak_memory import PeakMemory

D, MLP = 4096, 11008
SHAPES = {
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (D, D),
    "self_attn.v_proj": (D, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (MLP, D),
    "mlp.up_proj": (MLP, D),
    "mlp.down_proj": (D, MLP),
}
SHARES = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--sketch-size", type=int, default=128)
    parser.add_argument("--measure", type=Path, help="used by the processes that this one starts")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        adapter(place / "adapter", arguments.layers, arguments.rank)
        for label in ("by the weights", "on the task, sketched"):
            command = [sys.executable, "-m", "benchmarks.speed.compression", "--measure", folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{label}: {found['seconds']:.0f} s of processor time, {found['gigabytes']:.2f} GB; {found['result']}"
            )
            if not (place / "calibration").exists():
                calibration(arguments.layers, arguments.sketch_size).save(place / "calibration")


def measure(place: Path) -> None:
    """One compression to half of the parameters, in this process."""
    torch.set_num_threads(1)
    start = time.process_time()
    with PeakMemory(torch.device("cpu")) as peak:
        known = Calibration.load(place / "calibration") if (place / "calibration").exists() else None
        found = tlora.compress(place / "adapter", parameters=0.5, calibration=known)
        found.save_adapter(place / "smaller")
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "gigabytes": (peak.bytes or 0) / 1e9, "result": repr(found)}))


def names(layers: int) -> dict[str, Target]:
    return {
        (name := f"model.layers.{layer}.{path}"): Target(name, layer, path.split(".")[1], "mlp", *shape)
        for layer in range(layers)
        for path, shape in SHAPES.items()
    }


def adapter(folder: Path, layers: int, rank: int) -> None:
    generator, tensors = torch.Generator().manual_seed(0), {}
    falling = torch.arange(1.0, rank + 1) ** -1
    for name, target in names(layers).items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, target.d_in, generator=generator) * falling[:, None]
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(target.d_out, rank, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "base_model_name_or_path": "7b",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(SHAPES)}))


def calibration(layers: int, size: int, samples: int = 32) -> Calibration:
    """Sketches of random inputs whose principal components fall."""
    matrices, targets = SketchingMatrices(), names(layers)
    generator = torch.Generator().manual_seed(1)
    covariances: dict[str, Covariance] = {}
    shared = {name: _first(name) for name in targets}
    for name in dict.fromkeys(shared.values()):
        d = targets[name].d_in
        omega = matrices.get(d, size)
        x = torch.randn(2 * size, d, generator=generator) * torch.arange(1.0, 2 * size + 1)[:, None] ** -0.5
        means = SampleMeans(torch.randn(samples, d, generator=generator), samples)
        trace = float(x.double().square().sum())
        covariances[name] = SketchedCovariance(
            x.T @ (x @ omega), 2 * size, samples, means, omega=omega, total_trace=trace
        )
    meta = Meta("7b", recipe={"covariance": "sketch", "tokens": "all"}, samples=samples)
    return Calibration(
        covariances=covariances,
        shared=shared,
        sensitivity=Sensitivity(targets, torch.ones(samples, len(targets)), meta),
        gradient=None,
        fingerprints={name: torch.zeros(16) for name in targets},
        sample_fingerprints=torch.arange(samples),
        sketching=dict(matrices.tensors),
        meta=meta,
    )


def _first(name: str) -> str:
    parent, _, projection = name.rpartition(".")
    return f"{parent}.{SHARES.get(projection, projection)}"


if __name__ == "__main__":
    main()
