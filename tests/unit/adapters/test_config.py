"""An allocation as a PEFT config, with PEFT as the judge."""

import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tlora
from tests.helpers.models import FAMILIES, tiny_batch, tiny_model
from tests.unit.adapters.test_attach import logits, rising, step, with_a_draft
from tlora.adapters.lora_layers import adapter_layers


def check_layers(adapted: nn.Module, allocation: tlora.Allocation) -> None:
    layers = adapter_layers(adapted)
    assert {name: layer.r["default"] for name, layer in layers.items()} == allocation.ranks
    assert {name: layer.scaling["default"] for name, layer in layers.items()} == pytest.approx(allocation.scalings)
    assert {len(layer.lora_A["default"].weight) for layer in layers.values()} == set(allocation.ranks.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_peft_has_the_rank_and_scaling_of_the_allocation(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    allocation = rising(model)
    assert len(set(allocation.ranks.values())) > 2
    before = logits(model, batch)
    adapted = get_peft_model(model, tlora.lora_config(model, allocation))
    check_layers(adapted, allocation)
    assert torch.equal(logits(adapted, batch), before)
    trained = {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad and "lora_" in name}
    assert trained == {"lora_A", "lora_B"}
    step(adapted, batch)
    assert not torch.equal(logits(adapted, batch), before)


def test_a_name_that_ends_in_another_gets_its_own_rank() -> None:
    model = with_a_draft()
    allocation = rising(model)
    adapted = get_peft_model(model, tlora.lora_config(model, allocation))
    check_layers(adapted, allocation)


def test_patterns_without_anchors_are_seen() -> None:
    """The check above notices what it is there for."""
    model = with_a_draft()
    allocation = rising(model)
    config = tlora.lora_config(model, allocation)
    config.rank_pattern = {key.strip("^$"): rank for key, rank in config.rank_pattern.items()}
    with pytest.raises(AssertionError):
        check_layers(get_peft_model(model, config), allocation)


def test_the_head_is_trained_beside_what_else_is_asked_for() -> None:
    model = tiny_model("roberta")
    config = tlora.lora_config(model, rising(model), modules_to_save=["roberta.embeddings.word_embeddings"])
    adapted = get_peft_model(model, config)
    whole = {n.split(".modules_to_save")[0] for n, p in adapted.named_parameters() if p.requires_grad and "_to_" in n}
    assert {name.removeprefix("base_model.model.") for name in whole} == {
        "classifier", "roberta.embeddings.word_embeddings",
    }  # fmt: skip
    assert config.task_type == "SEQ_CLS"


def test_overrides_are_those_of_peft() -> None:
    model = tiny_model("gpt2")
    config = tlora.lora_config(model, rising(model), lora_dropout=0.25, bias="lora_only", init_lora_weights="gaussian")
    assert (config.lora_dropout, config.bias, config.init_lora_weights) == (0.25, "lora_only", "gaussian")
    assert config.fan_in_fan_out
    with pytest.raises(TypeError, match="nonsense"):
        tlora.lora_config(model, rising(model), nonsense=1)


CONTRADICTIONS: list[dict[str, Any]] = [
    {"r": 4},
    {"lora_alpha": 4},
    {"rank_pattern": {"q": 1}},
    {"alpha_pattern": {"q": 1}},
    {"use_rslora": True},
    {"use_dora": True},
    {"target_modules": ["q_proj"]},
    {"exclude_modules": ["q_proj"]},
    {"layers_to_transform": [0]},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "eva"},
    {"init_lora_weights": False},
]


@pytest.mark.parametrize("override", CONTRADICTIONS, ids=str)
def test_what_contradicts_the_allocation_is_refused(override: dict[str, Any]) -> None:
    model = tiny_model("llama")
    ((name, value),) = override.items()
    with pytest.raises(
        ValueError, match=f"^{re.escape(f'{name}={value!r}')} .*leave {name if 'init' not in name else 'it'} out"
    ):
        tlora.lora_config(model, rising(model), **override)


def test_of_another_model_or_an_adapted_one() -> None:
    model = tiny_model("llama")
    allocation = rising(model)
    with pytest.raises(ValueError, match="this allocation is of another model"):
        tlora.lora_config(tiny_model("gpt2"), allocation)
    tlora.attach(model, None, allocation)
    with pytest.raises(ValueError, match="already has an adapter"):
        tlora.lora_config(model, allocation)


def test_attach_takes_a_config_and_a_name() -> None:
    model = tiny_model("llama")
    allocation = rising(model)
    config = LoraConfig(lora_dropout=0.5, task_type="CAUSAL_LM")
    adapted = tlora.attach(model, None, allocation, config=config, adapter_name="mine")
    layers = adapter_layers(adapted).values()
    assert {layer.lora_dropout["mine"].p for layer in layers} == {0.5}
    assert {name: layer.r["mine"] for name, layer in adapter_layers(adapted).items()} == allocation.ranks
    assert not any(layer.lora_A["mine"].weight.requires_grad for layer in layers)
    tlora.detach(model)
    with pytest.raises(ValueError, match="r=16 contradicts the allocation"):
        tlora.attach(model, None, allocation, config=LoraConfig(r=16))
    with pytest.raises(TypeError, match="config is a dict"):
        tlora.attach(model, None, allocation, config={"r": 8})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name='a\.b'"):
        tlora.attach(model, None, allocation, adapter_name="a.b")
    assert not adapter_layers(model)
