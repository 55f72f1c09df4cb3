"""The packaged models: found, loaded as ordinary models, good for everything that comes after."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
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
    targets = target_modules(smollm[0])
    projections = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    assert [(t.layer, t.projection) for t in targets.values()] == [
        (layer, projection) for layer in range(30) for projection in projections
    ]
    assert head_modules(smollm[0]) == []


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


def test_minilm_is_a_classifier_with_six_targets_in_each_of_six_layers(minilm):
    model, tokenizer = minilm
    targets = target_modules(model)
    assert len(targets) == 36
    projections = {"query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"}
    assert {(t.layer, t.projection) for t in targets.values()} == {(n, p) for n in range(6) for p in projections}
    assert head_modules(model) == ["classifier"]
    batch = tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 2)


@pytest.mark.parametrize("size", [100, 2000, 3_000_000])
def test_a_truncated_gguf_is_refused(size, tmp_path):
    location = resolve("smollm2-135m", {})
    with open(Path(location.path) / location.where["gguf_file"], "rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(ValueError, match=r"cut\.gguf"):
        load_model(tmp_path / "cut.gguf")
