"""Tiny adapted models, by PEFT alone or by `attach`, and rows to train them on."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tlora.calibration.sensitivity import Sensitivity
from tlora.models.targets import target_modules
from tlora.results import Meta

TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "output.dense"],
    "t5": ["q", "wo"],
}


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """The Trainer collects garbage when it starts, and the libraries alone are a million objects."""
    gc.freeze()
    yield
    gc.unfreeze()


def adapted_model(family: str = "llama", *, seed: int = 0, declare_frozen: bool = True, **config: Any) -> PeftModel:
    """A tiny model with a LoRA adapter whose ranks and scalings differ by layer, A frozen, B zero."""
    task = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(family, "CAUSAL_LM")
    base = tiny_model(family, seed=seed)
    values = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": TARGETS[family],
        "rank_pattern": {r"^.*\.1\..*$": 3},
        "alpha_pattern": {r"^.*\.1\..*$": 7.5},
        "task_type": task,
        "fan_in_fan_out": family == "gpt2",
    } | config
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # PEFT asks transformers under a name that is going out of use.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(base, LoraConfig(**values))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].requires_grad_(False)
            if declare_frozen:
                layer.frozen_peft_weight_names = {"default": ("lora_A",)}
    return model


def token_rows(count: int = 16, *, seed: int = 0, classes: int = 0) -> Dataset:
    """Rows of 4 to 8 random tokens, the first a prompt; with ``classes`` a class in place of labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(count):
        ids = torch.randint(3, 64, (4 + n % 5,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": n % classes if classes else [-100, *ids[1:]]})
    return Dataset.from_list(rows)


def prepare(family: str = "llama", max_rank: int = 16, **options: Any) -> tuple[Any, tlora.Subspaces, tlora.Allocation]:
    """A tiny model, its subspaces and an allocation: the arguments of `attach`."""
    model = tiny_model(family)
    calibration = calibrate_tiny(model)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=max_rank, progress=False)
    return model, subspaces, tlora.allocate(calibration.sensitivity, rank=4, **{"max_rank": max_rank, **options})


def calibrate_tiny(model: Any, **options: Any) -> tlora.Calibration:
    return tlora.calibrate(model, [tiny_batch(model)], progress=False, **options)


def rising_allocation(model: nn.Module, rank: int = 4, **options: Any) -> tlora.Allocation:
    """An allocation by rising scores, so that few modules have the same rank and scaling."""
    targets = target_modules(model)
    scores = torch.arange(1, len(targets) + 1)[None].float()
    return tlora.allocate(Sensitivity(targets, scores, Meta()), rank, **options)


def model_with_draft() -> Any:
    """A model that contains another one: full names of the first are suffixes of names of the second."""
    model = tiny_model("llama")
    model.draft = tiny_model("llama", seed=1)
    return model


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels" or model.config.is_encoder_decoder}
    with torch.no_grad():
        return model(**inputs).logits


def step(model: Any, batch: dict[str, Tensor], learning_rate: float = 0.05) -> None:
    """One step of gradient descent on what is trainable."""
    model(**batch).loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p -= learning_rate * p.grad
                p.grad = None


def train_once(adapted: PeftModel) -> tlora.TrainingRun:
    """A run of one step, whose learning rate is still zero: the model stays as it is."""
    row: dict[str, Any] = {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}
    if adapted.config.is_encoder_decoder:
        row["labels"] = [4, 5]
    elif adapted.peft_config["default"].task_type == "SEQ_CLS":
        row["labels"] = 1
    options: dict[str, Any] = {"batch_size": 1, "max_steps": 1, "evaluation_limit": 0, "progress": False}
    return tlora.train(adapted, Dataset.from_list([row]), learning_rate=1e-3, **options)


def condition(model: Any) -> list[Any]:
    """What a refusal, a training or an evaluation must leave as it was."""
    modules = [
        (name, type(m), m.training, len(m._forward_hooks), getattr(m, "gradient_checkpointing", None))
        for name, m in model.named_modules()
    ]
    patched = [name for name, m in model.named_modules() if {"forward", "_require_grads_hook"} & vars(m).keys()]
    parameters = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    return [modules, patched, parameters, getattr(model.config, "use_cache", None)]


def check_layers(adapted: nn.Module, allocation: tlora.Allocation) -> None:
    """Every layer of PEFT has the rank and the scaling of the allocation."""
    layers = {n.removeprefix("base_model.model."): m for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert {name: layer.r["default"] for name, layer in layers.items()} == allocation.ranks
    assert {name: layer.scaling["default"] for name, layer in layers.items()} == pytest.approx(allocation.scalings)
    for name, layer in layers.items():
        assert len(layer.lora_A["default"].weight) == allocation.ranks[name]
