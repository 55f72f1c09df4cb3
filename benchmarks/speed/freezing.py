"""What freezing A saves in a training step: stored activations, peak memory, time, and how many tokens fit.

    python -m benchmarks.speed.freezing                              # a few blocks of three models, on the CPU
    python -m benchmarks.speed.freezing --only 2 --repeats 3         # one of the cases, numbered from 0
    python -m benchmarks.speed.freezing --device cuda --times 32     # on a GPU, with 32 times the rows

LoRA with PEFT's float32 adapters, LoRA with adapters in the type of the base, PEFT's LoRA-FA, and `tlora`, on a base in
float32 and in bfloat16, with and without gradient checkpointing.

- stored: bytes that autograd keeps from the forward to the backward pass, counted by hooks on saved tensors.
- peak: the most that PyTorch has allocated during two steps, in addition to the model. On a CPU it is counted by the
  profiler: unlike the resident memory of a process, it is the same on a machine that is used by others.
- estimated / stored, / peak, / seconds: what `tlora.estimate` says, divided by what was measured; its seconds are those
  of the matrix products alone, at the speed of large ones.
- tokens that fit: in the memory that `tlora` takes without checkpointing for the rows of the case.

Each row begins with one token of padding, as most rows of a batch do; without any, transformers leaves out the mask.
Seconds are the median over the repeats, in which the variants take turns.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import tlora
from benchmarks.speed.stopwatch import now
from tests.helpers.training_steps import CASES, LABELS, RANK, RUNS, TLORA, VARIANTS, Stepper, random_model, stored_bytes
from tlora.resources.matmul_speed import matmul_speed


def seconds(stepper: Stepper) -> float:
    """Time of a step."""
    started = now(stepper.device.type)
    stepper.step()
    return now(stepper.device.type) - started


def table(number: int, dtype: str, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row for each variant, with and without checkpointing."""
    case = CASES[number].times(arguments.times)
    model = random_model(case, dtype, arguments.device)
    speed = matmul_speed(arguments.device, dtype)
    steppers, lines = [], []
    for variant, checkpointing in RUNS:
        stepper = Stepper(model, case, variant, checkpointing)
        line = {"variant": variant, "checkpointing": checkpointing, "peak": stepper.peak_bytes()}
        with stored_bytes(stepper.model) as stored:
            stepper.loss().backward()
        stepper.optimizer.zero_grad()
        options = {"gradient_checkpointing": checkpointing, "gpus": int(arguments.device != "cpu")}
        work = {"batch_size": case.rows, "length": case.length, "labels": LABELS, "dtype": dtype}
        said = tlora.estimate(case.config, RANK, **work, **options)
        stage = VARIANTS[variant][2]
        stage = stage if stage in said.bytes else "training A and B"  # in float32 there is one type of adapter
        line["estimated"] = said.bytes[stage] - said.bytes["weights"]
        line["estimated stored"] = said.activations[stage]
        line["estimated seconds"] = said.flops[stage] / speed
        line.update(stored=sum(stored), fixed=stepper.fixed_bytes())
        steppers.append(stepper)
        lines.append(line)
    measured = [[seconds(stepper) for stepper in steppers] for _ in range(arguments.repeats)]
    frame = pd.DataFrame(lines).assign(seconds=np.median(measured, axis=0))
    limit = frame["peak"][RUNS.index((TLORA, False))]
    tokens = case.rows * case.length
    frame["fit"] = tokens * (limit - frame["fixed"]) / (frame["peak"] - frame["fixed"])
    frame["speed"] = tokens / frame["seconds"]
    return frame


def text(frame: pd.DataFrame) -> str:
    """The table as it is printed; percentages are of LoRA in float32 without checkpointing."""
    lora_line = frame.iloc[0]

    def relative(name: str, form: Callable[[float], str]) -> list[str]:
        return [f"{form(value)} ({value / lora_line[name]:.0%})" for value in frame[name]]

    def megabytes(value: float) -> str:
        return f"{value / 1e6:,.0f}"

    shown = {
        "": frame["variant"] + frame["checkpointing"].map({True: ", checkpointing", False: ""}),
        "stored, MB": relative("stored", megabytes),
        "estimated / stored": frame["estimated stored"] / frame["stored"],
        "peak, MB": relative("peak", megabytes),
        "estimated / peak": frame["estimated"] / frame["peak"],
        "seconds a step": relative("seconds", "{:.2f}".format),
        "estimated / seconds": frame["estimated seconds"] / frame["seconds"],
        "tokens that fit": frame["fit"].map("{:,.0f}".format),
        "tokens per second": frame["speed"].map("{:,.0f}".format),
    }
    return pd.DataFrame(shown).round(2).to_string(index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases, from 0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--times", type=int, default=1, help="times the rows of a case")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)  # used by PEFT
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    for number, dtype in itertools.product(arguments.only or range(len(CASES)), arguments.dtype):
        case = CASES[number].times(arguments.times)
        what = f"{case.sizes['num_hidden_layers']} blocks of {case.name} in {dtype}, rank {RANK}"
        print(f"\n{what}, {case.rows} rows of {case.length} tokens:")
        print(text(table(number, dtype, arguments)), flush=True)


if __name__ == "__main__":
    main()
