"""The packaged models: found, loaded as ordinary models, good for everything that comes after."""

import copy
import json
import sys
from pathlib import Path

import datasets
import gguf
import numpy as np
import peft
import pytest
import torch
import transformers

from tlora.models.loading import PACKAGED, load_model, resolve
from tlora.models.targets import head_modules, target_modules

pytestmark = pytest.mark.packaged


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_is_found_without_being_imported(name):
    location = resolve(name, {})
    assert (Path(location.path) / location.where.get("gguf_file", "config.json")).is_file()
    assert PACKAGED[name][0] not in sys.modules


def test_smollm_knows_the_capital_of_france(smollm):
    model, tokenizer = smollm
    assert not model.training
    assert model.dtype == torch.float32
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_smollm_has_seven_targets_in_each_of_thirty_layers(smollm):
    found = target_modules(smollm[0])
    assert len(found) == 210
    projections = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    assert [(t.layer, t.projection) for t in found.values()] == [
        (layer, projection) for layer in range(30) for projection in projections
    ]
    assert head_modules(smollm[0]) == []


def test_smollm_is_remembered_by_the_name_that_finds_it(smollm):
    model, tokenizer = smollm
    assert model.name_or_path == model.config.name_or_path == tokenizer.name_or_path == "smollm2-135m"
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    assert adapted.peft_config["default"].base_model_name_or_path == "smollm2-135m"


def test_nothing_is_left_of_the_quantization(smollm, tmp_path):
    model, _ = smollm
    for leftover in ("hf_quantizer", "quantization_method"):
        assert not hasattr(model, leftover) or getattr(model, leftover) is None
    assert not getattr(model, "is_quantized", False)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert not any("quant" in key for key in saved)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_smollm_has_the_weights_of_its_file(smollm):
    model, _ = smollm
    location = resolve("smollm2-135m", {})
    tensors = {t.name: t for t in gguf.GGUFReader(Path(location.path, location.where["gguf_file"])).tensors}
    for name, parameter in (
        ("token_embd", model.model.embed_tokens.weight),
        ("blk.29.ffn_down", model.model.layers[29].mlp.down_proj.weight),
    ):
        tensor = tensors[f"{name}.weight"]
        np.testing.assert_array_equal(parameter.detach().numpy(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_smollm_is_trained_by_the_trainer(smollm, tmp_path):
    model, tokenizer = copy.deepcopy(smollm[0]), smollm[1]
    ids = tokenizer("The capital of France is Paris.")["input_ids"]
    rows = datasets.Dataset.from_list([{"input_ids": ids, "labels": ids}] * 2)
    before = [parameter.detach().clone() for parameter in model.model.layers[0].mlp.parameters()]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["v_proj"], task_type="CAUSAL_LM"))
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = transformers.Trainer(adapted, arguments, train_dataset=rows)
    try:
        loss = trainer.train().training_loss
    finally:
        model = adapted.unload()
    assert 0 < loss < 10
    assert all(a.equal(b) for a, b in zip(before, model.model.layers[0].mlp.parameters(), strict=True))
    assert len(target_modules(model)) == 210


def test_minilm_is_a_classifier_with_six_targets_in_each_of_six_layers(minilm):
    model, tokenizer = minilm
    found = target_modules(model)
    assert len(found) == 36
    assert {t.layer for t in found.values()} == set(range(6))
    assert {t.projection for t in found.values()} == {
        "query",
        "key",
        "value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    }
    assert head_modules(model) == ["classifier"]
    batch = tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 2)
    assert model.config.name_or_path == "minilm"


@pytest.mark.parametrize("size", [100, 2000, 3_000_000])
def test_a_truncated_gguf_is_refused(size, tmp_path):
    location = resolve("smollm2-135m", {})
    with open(Path(location.path) / location.where["gguf_file"], "rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(ValueError, match=r"cut\.gguf"):
        load_model(tmp_path / "cut.gguf")
