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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

import tlora
from benchmarks.speed.memory import random_batch
from benchmarks.speed.stopwatch import now
from tlora.allocation.footprint import AS_BASE
from tlora.models.forward import restrict_logits
from tlora.models.weights import copy_sharing_weights
from tlora.resource_estimate import matmul_speed, switch_checkpointing
from tlora.utils.peak_memory import PeakMemory

RANK, LABELS = 8, 16


@dataclass(frozen=True)
class Case:
    """A few blocks of a model, and a batch for them."""

    name: str
    sizes: dict[str, int]
    rows: int
    length: int

    def times(self, factor: int) -> Case:
        """The same with so many times the rows."""
        return replace(self, rows=factor * self.rows)

    @property
    def config(self) -> LlamaConfig:
        """The model's config."""
        return LlamaConfig(**self.sizes, vocab_size=8000, max_position_embeddings=4096, use_cache=False)


def _llama(hidden: int, intermediate: int, heads: int, key_heads: int, blocks: int) -> dict[str, int]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": blocks}
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": key_heads}


SMOLLM2 = _llama(576, 1536, 9, 3, blocks=4)
CASES = (
    Case("SmolLM2-135M", SMOLLM2, rows=1, length=512),
    Case("SmolLM2-135M", SMOLLM2, rows=8, length=64),
    Case("Llama-3.2-1B", _llama(2048, 8192, 32, 8, blocks=4), rows=1, length=128),
    Case("LLaMA-2-7B", _llama(4096, 11008, 32, 32, blocks=2), rows=1, length=64),
)


def lora(model: Any, **options: Any) -> Any:
    """PEFT's LoRA on every linear layer of the blocks."""
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"), **options)


def frozen(model: Any) -> Any:
    """The adapter of `tlora.attach` with the same ranks; where A points makes no difference to what a step takes."""
    batch = random_batch(1, 8, 8, model.config.vocab_size)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    calibration = tlora.calibrate(model, [batch], covariance="sketch", sketch_size=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, RANK, adapt_ranks=False, adapt_scales=False)
    return tlora.attach(model, None, allocation)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def _lora_fa(model: Any) -> torch.optim.Optimizer:
    return create_lorafa_optimizer(model, r=RANK, lora_alpha=RANK, lr=1e-4)


TLORA = "tlora, A frozen"
Variant = tuple[Callable[[Any], Any], Callable[[Any], torch.optim.Optimizer], str]
VARIANTS: dict[str, Variant] = {
    "LoRA, adapter in float32": (lora, _adamw, "training A and B"),
    "LoRA, adapter as base": (lambda model: lora(model, autocast_adapter_dtype=False), _adamw, f"training {AS_BASE}"),
    "LoRA-FA of PEFT": (lora, _lora_fa, "training B"),
    TLORA: (frozen, _adamw, "training B"),
}
"""How each adapts a model and makes its optimizer, and the stage of `tlora.estimate` that it is."""
Run = tuple[str, bool]
"""A variant, and whether its activations are checkpointed."""
RUNS: list[Run] = [(variant, checkpointing) for checkpointing in (False, True) for variant in VARIANTS]


@contextmanager
def stored_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of the tensors that autograd stores inside the block; parameters are not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters | kept.keys():
            kept[storage.data_ptr()] = tensor  # alive, so that no other tensor gets its address
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


class Stepper:
    """A model with one of the variants on it, its optimizer, and a batch; the model's weights are shared."""

    def __init__(self, model: Any, case: Case, variant: str, checkpointing: bool) -> None:
        adapt, make_optimizer, _ = VARIANTS[variant]
        own = copy_sharing_weights(model)
        self.device = model.device
        self.model = adapt(own).train()
        self.optimizer = make_optimizer(self.model)
        if checkpointing:
            switch_checkpointing(own, "enable", {"use_reentrant": False})
        batch = random_batch(case.rows, case.length, LABELS, case.config.vocab_size)
        batch["attention_mask"][:, 0] = 0
        self.batch = restrict_logits(self.model, {name: values.to(self.device) for name, values in batch.items()})

    def loss(self) -> Tensor:
        """Forward."""
        result: Tensor = self.model(**self.batch).loss
        return result

    def step(self) -> None:
        """Forward, backward, and the optimizer."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        """Time of a step."""
        started = now(self.device.type)
        self.step()
        return now(self.device.type) - started

    def adapter_bytes(self) -> int:
        """Bytes of the adapter."""
        return sum(p.nbytes for name, p in self.model.named_parameters() if "lora_" in name)

    def fixed_bytes(self) -> int:
        """Bytes of the adapter, its gradients, and the two states of its optimizer."""
        return self.adapter_bytes() + 3 * sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    def peak_bytes(self) -> int:
        """The most that the first two steps hold in addition to the model; the second has the optimizer's states."""
        return self.adapter_bytes() + allocated_peak(lambda: [self.step() for _ in range(2)], self.device)


def allocated_peak(work: Callable[[], object], device: torch.device) -> int:
    """The most that PyTorch has allocated during some work, in addition to what it had before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        with PeakMemory(device) as peak:
            work()
        return (peak.bytes or 0) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes))


def random_model(case: Case, dtype: str, device: str = "cpu") -> Any:
    """A frozen model with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(case.config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


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
    seconds = [[stepper.seconds() for stepper in steppers] for _ in range(arguments.repeats)]
    frame = pd.DataFrame(lines).assign(seconds=np.median(seconds, axis=0))
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
        "tokens a second": frame["speed"].map("{:,.0f}".format),
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
