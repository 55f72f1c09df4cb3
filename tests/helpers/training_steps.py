"""A training step of several kinds of LoRA on a few blocks of a model: what autograd stores, and the peak.

- stored: bytes that autograd keeps from the forward to the backward pass, counted by hooks on saved tensors.
- peak: the most that PyTorch has allocated during two steps, in addition to the model. On a CPU it is counted by the
  profiler: unlike the resident memory of a process, it is the same on a machine that is used by others.

Each row of a batch begins with one token of padding, as most rows do; without any, transformers leaves out the mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import tlora
from tlora.allocation.footprint import AS_BASE
from tlora.models.experts import expert_modules
from tlora.models.forward import restrict_logits
from tlora.models.weights import copy_sharing_weights
from tlora.resources.simulated_model import switch_checkpointing
from tlora.utils.peak_memory import PeakMemory

RANK, LABELS = 8, 16


@dataclass(frozen=True)
class Case:
    """A few blocks of a model, and a batch for them."""

    name: str
    sizes: dict[str, int]
    rows: int
    length: int
    family: str = "llama"

    def times(self, factor: int) -> Case:
        """The same with so many times the rows."""
        return replace(self, rows=factor * self.rows)

    @property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        sizes = self.sizes | {"vocab_size": 8000, "max_position_embeddings": 4096}
        return AutoConfig.for_model(self.family, **sizes, use_cache=False)


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


MIXTURES = (
    Case(
        "Qwen3-30B-A3B with 32 of 128 experts",
        {
            "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 32, "num_experts_per_tok": 8,
        },
        rows=2, length=128, family="qwen3_moe",
    ),
    Case(
        "gpt-oss-20b with 8 of 32 experts",
        {
            "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 3, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 4,
        },
        rows=2, length=128, family="gpt_oss",
    ),
)  # fmt: skip
"""Their attention and routed experts are adapted."""


def selected(model: Any) -> list[str] | None:
    """The target modules of a case: of a mixture its experts too."""
    return ["attention", "experts"] if expert_modules(model) else None


def lora(model: Any, **options: Any) -> Any:
    """PEFT's LoRA on every linear layer of the blocks."""
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear"), **options)


def frozen(model: Any) -> Any:
    """The adapter of `tlora.attach` with the same ranks; where A points makes no difference to what a step takes."""
    batch = random_batch(1, 8, 8, model.config.vocab_size)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    options: dict[str, Any] = {"covariance": "sketch", "sketch_size": 8, "target_modules": selected(model)}
    calibration = tlora.calibrate(model, [batch], **options, progress=False)
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


def random_batch(count: int, length: int, labels: int, vocabulary: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, vocabulary, (count, length))
    targets = ids.masked_fill(torch.arange(length) < length - labels, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": targets}
