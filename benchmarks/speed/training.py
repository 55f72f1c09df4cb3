"""What a step of training costs with A frozen, beside LoRA with the same ranks, in one run.

    python -m benchmarks.speed.training --rank 128

Time: both are adapted copies of one model, and take turns step by step; each pair of steps gives a ratio. Memory: each
in a process of its own, the most that was resident while training; beside it what an account of the optimizer's states
and the saved activations of A says. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import tlora
from tlora.allocation.footprint import BYTES
from tlora.utils.peak_memory import PeakMemory


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        print(json.dumps(memory(arguments)))
        return
    print(
        f"{arguments.model}, rank {arguments.rank} by sensitivity, {arguments.batch_size} sequences of "
        f"{arguments.length} tokens, {torch.get_num_threads()} threads"
    )
    _print_time(arguments)
    _print_memory(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="family_relationships")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--measure", choices=("frozen", "trained"), help="the memory of one of them, as JSON")
    return parser.parse_args()


def prepared(arguments: argparse.Namespace) -> tuple[Any, tlora.Calibration, tlora.Allocation]:
    """The base, and ranks by the sensitivity to a few samples."""
    model, tokenizer = tlora.load_model(arguments.model)
    task = tlora.load_task(arguments.task, tokenizer, train=8, validation=1, test=1)
    calibration = tlora.calibrate(model, task.calibration(8), progress=False)
    return model, calibration, tlora.allocate(calibration.sensitivity, arguments.rank)


class Stepper:
    """An adapted model with its optimizer, and a batch of random tokens."""

    def __init__(self, model: Any, allocation: tlora.Allocation, freeze_a: bool, arguments: argparse.Namespace) -> None:
        # What a step costs does not depend on where A points.
        self.model = tlora.attach(model, None, allocation, freeze_a=freeze_a).train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        size = (arguments.batch_size, arguments.length)
        tokens = torch.randint(model.config.vocab_size, size, generator=torch.Generator().manual_seed(0))
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}

    def step(self) -> None:
        """Forward, backward, and the optimizer."""
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _print_time(arguments: argparse.Namespace) -> None:
    base, _, allocation = prepared(arguments)
    both = [Stepper(copy.deepcopy(base), allocation, freeze_a, arguments) for freeze_a in (True, False)]
    for stepper in both:
        stepper.step()
    ratios = []
    for _ in range(arguments.repeats):
        frozen, trained = (_seconds(stepper) for stepper in both)
        ratios.append(frozen / trained)
    print(
        f"a step with A frozen / with A trained: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}) of {len(ratios)} pairs"
    )


def _seconds(stepper: Stepper) -> float:
    started = time.perf_counter()
    stepper.step()
    return time.perf_counter() - started


def memory(arguments: argparse.Namespace) -> dict[str, float]:
    """The peak of this process while one of the two is trained, and what the account says A costs when it is."""
    base, calibration, allocation = prepared(arguments)
    frozen, trained = (allocation.footprint(freeze_a=freeze_a).optimizer_bytes for freeze_a in (True, False))
    # Gradients are not counted: they take the place of activations, which are gone at that time.
    account = trained - frozen + _saved_inputs(calibration, arguments)
    del calibration
    stepper = Stepper(base, allocation, arguments.measure == "frozen", arguments)
    with PeakMemory(torch.device("cpu")) as peak:
        for _ in range(3):
            stepper.step()
    if peak.bytes is None:
        raise SystemExit("this system does not tell the peak of a process: run it on Linux")
    return {"peak": peak.bytes, "account": account}


def _saved_inputs(calibration: tlora.Calibration, arguments: argparse.Namespace) -> int:
    """Bytes of the distinct inputs of all modules: A's gradient needs them until the backward pass."""
    widths = (calibration.sensitivity.shapes[name][1] for name in set(calibration.shared.values()))
    return BYTES * arguments.batch_size * arguments.length * sum(widths)


def _print_memory(arguments: argparse.Namespace) -> None:
    found = {kind: _measured(arguments, kind) for kind in ("frozen", "trained")}
    frozen, trained, account = found["frozen"]["peak"], found["trained"]["peak"], found["trained"]["account"]
    print(
        f"peak memory: {frozen / 1e6:,.0f} MB with A frozen, {trained / 1e6:,.0f} MB with A trained, "
        f"{frozen / trained:.3f} x; {(trained - frozen) / 1e6:,.0f} MB less, the account says {account / 1e6:,.0f} MB"
    )


def _measured(arguments: argparse.Namespace, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed.training", "--measure", kind]
    for name in ("model", "task", "rank", "batch_size", "length"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(told.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
