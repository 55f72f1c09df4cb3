"""An allocation as a PEFT config, with PEFT as the judge."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.adapted import check_layers, logits, model_with_draft, rising_allocation, step
from tests.helpers.models import FAMILIES, tiny_batch, tiny_model
from tlora.adapters.lora_layers import adapter_layers
from tlora.models.targets import target_modules


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_peft_has_the_rank_and_scaling_of_the_allocation(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    allocation = rising_allocation(model)
    assert len(set(allocation.ranks.values())) > 2
    before = logits(model, batch)
    adapted = get_peft_model(model, tlora.lora_config(model, allocation))
    check_layers(adapted, allocation)
    assert torch.equal(logits(adapted, batch), before)
    trained = {name.split(".")[-3] for name, p in adapted.named_parameters() if p.requires_grad and "lora_" in name}
    assert trained == {"lora_A", "lora_B"}
    step(adapted, batch)
    assert not torch.equal(logits(adapted, batch), before)


def test_the_head_is_trained_beside_what_else_is_asked_for() -> None:
    model = tiny_model("roberta")
    config = tlora.lora_config(model, rising_allocation(model), modules_to_save=["roberta.embeddings.word_embeddings"])
    adapted = get_peft_model(model, config)
    whole = {n.split(".modules_to_save")[0] for n, p in adapted.named_parameters() if p.requires_grad and "_to_" in n}
    assert {name.removeprefix("base_model.model.") for name in whole} == {
        "classifier", "roberta.embeddings.word_embeddings",
    }  # fmt: skip
    assert config.task_type == "SEQ_CLS"


def test_overrides_are_those_of_peft() -> None:
    model = tiny_model("gpt2")
    allocation = rising_allocation(model)
    config = tlora.lora_config(model, allocation, lora_dropout=0.25, bias="lora_only", init_lora_weights="gaussian")
    assert (config.lora_dropout, config.bias, config.init_lora_weights) == (0.25, "lora_only", "gaussian")
    assert config.fan_in_fan_out


def test_attach_takes_a_config() -> None:
    model = tiny_model("llama")
    allocation = rising_allocation(model)
    config = LoraConfig(lora_dropout=0.5, task_type="CAUSAL_LM")
    layers = adapter_layers(tlora.attach(model, None, allocation, config=config))
    assert {layer.lora_dropout["default"].p for layer in layers.values()} == {0.5}
    assert {name: layer.r["default"] for name, layer in layers.items()} == allocation.ranks
    assert not any(layer.lora_A["default"].weight.requires_grad for layer in layers.values())


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"r": 4}, ValueError, "r=4"),
    ({"alpha_pattern": {"q": 1}}, ValueError, "alpha_pattern="),
    ({"use_dora": True}, ValueError, "use_dora=True"),
    ({"target_modules": ["q_proj"]}, ValueError, "target_modules="),
    ({"init_lora_weights": "pissa"}, ValueError, "init_lora_weights='pissa'"),
    ({"init_lora_weights": False}, ValueError, "init_lora_weights=False"),
    ({"nonsense": 1}, TypeError, "nonsense"),
    ({"modules_to_save": ["q_proj"]}, ValueError, r"modules_to_save='q_proj'.*layers\.0\.self_attn\.q_proj"),
    ({"modules_to_save": ["self_attn"]}, ValueError, r"modules_to_save='self_attn'.*layers\.0\.self_attn\.q_proj"),
]


@pytest.mark.parametrize(("overrides", "error", "argument"), REFUSALS, ids=str)
def test_refusals(overrides: dict[str, Any], error: type[Exception], argument: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(error, match=argument):
        tlora.lora_config(model, rising_allocation(model), **overrides)


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`")
def test_attach_takes_every_option_of_a_config() -> None:
    model = tiny_model("llama")
    allocation = rising_allocation(model)
    config = LoraConfig(ensure_weight_tying=True, modules_to_save=["model.norm"], lora_dropout=0.25)
    adapted = tlora.attach(model, None, allocation, config=config)
    assert adapted.peft_config["default"].lora_dropout == 0.25
    assert adapted.peft_config["default"].ensure_weight_tying
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"base_model.model.model.norm.modules_to_save.default.weight"}
    refused = LoraConfig(modules_to_save=["q_proj"])
    with pytest.raises(ValueError, match="modules_to_save='q_proj'"):
        tlora.attach(model, None, allocation, config=refused, replace=True)


def test_refusals_of_models() -> None:
    model = tiny_model("llama")
    allocation = rising_allocation(model)
    with pytest.raises(ValueError, match="another model"):
        tlora.lora_config(tiny_model("gpt2"), allocation)
    tlora.attach(model, None, allocation)
    with pytest.raises(ValueError, match="already has an adapter"):
        tlora.lora_config(model, allocation)
    model = model_with_draft()
    drafts = [name for name in target_modules(model) if name.startswith("draft")]
    allocation = rising_allocation(model, exclude_modules=drafts)
    with pytest.raises(ValueError, match=r"draft\.model\.layers\.0"):
        tlora.lora_config(model, allocation)
