"""A GGUF adapter: judged by transformers' own reader of GGUF models, and by names and row orders spelled out."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.foreign import tied
from tests.helpers.gguf_models import FAMILIES, adapted_of, gguf_name, model_of, row_order, tensors_of, write_model
from tests.helpers.models import tiny_batch, tiny_model
from tlora.adapters.lora_layers import adapter_layers
from tlora.serving.llama_cpp import ARCHITECTURES, read_gguf
from tlora.utils.logs import without_noise

# What transformers reads, too; all the others are served by llama.cpp itself in tests/serving.
READ_BY_TRANSFORMERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")


def read(file: Path) -> tuple[dict[str, np.ndarray], dict]:
    reader = gguf.GGUFReader(file)
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).copy() for t in reader.tensors}
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


def test_every_architecture_is_tried():
    kinds = {model_of(family).config.model_type for family in FAMILIES}
    assert kinds == set(ARCHITECTURES)


@pytest.mark.parametrize("family", READ_BY_TRANSFORMERS)
def test_added_to_the_base_file_it_is_the_adapted_model(family, tmp_path):
    """What llama.cpp does: W + alpha / rank B A on the tensors of the base's GGUF, read by transformers afterwards."""
    adapted = adapted_of(family)
    tensors = tensors_of(model_of(family), family)
    update, fields = read(tlora.export(adapted, tmp_path / "adapter.gguf", format="gguf"))
    bare = adapted_logits(model_of(family), family)
    for name in [name for name in update if name.endswith(".lora_a")]:
        a, b = update[name], update[name.replace("lora_a", "lora_b")]
        weight = name.removesuffix(".lora_a")
        assert tensors[weight].shape == (len(b), a.shape[1])
        tensors[weight] = tensors[weight] + fields["adapter.lora.alpha"] / len(a) * b @ a
    write_model(tmp_path / "whole.gguf", model_of(family), family, tensors)
    with without_noise():
        unpacked = transformers.GgufConfig(dequantize=True)
        whole = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file="whole.gguf",
            quantization_config=unpacked,
            config=model_of(family).config,
            dtype=torch.float32,
        )
    expected = adapted_logits(adapted, family)
    torch.testing.assert_close(adapted_logits(whole, family), expected, atol=1e-4, rtol=0)
    assert (expected - bare).abs().max() > 0.1


def adapted_logits(model, family):
    with torch.no_grad():
        return model(input_ids=tiny_batch("llama", (9,))["input_ids"]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_names_rows_and_scale(family, tmp_path):
    adapted = adapted_of(family)
    tensors, fields = read(tlora.export(adapted, tmp_path, engine="llama.cpp"))
    assert fields["general.architecture"] == FAMILIES[family][0]
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    config = adapted.get_base_model().config
    for module, layer in adapter_layers(adapted).items():
        name = gguf_name(module, FAMILIES[family][1])
        a, b = tensors.pop(f"{name}.weight.lora_a"), tensors.pop(f"{name}.weight.lora_b")
        assert len(a) == layer.r["default"]
        np.testing.assert_array_equal(a, layer.lora_A["default"].weight.detach())
        delta = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        expected = delta[row_order(name, len(b), config, family)]
        np.testing.assert_allclose(fields["adapter.lora.alpha"] / len(a) * b @ a, expected, atol=1e-6)
    assert not tensors


@pytest.mark.parametrize(("dtype", "error"), [("float32", 5e-7), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_a_dtype_rounds_once(dtype, error, tmp_path):
    adapted = adapted_of("llama")
    path = tlora.export(adapted, tmp_path, format="gguf", dtype=dtype)
    names = adapter_layers(adapted)
    updates = read_gguf(path, names, adapted.get_base_model().config)
    for name, update in updates.items():
        layer = names[name]
        torch.testing.assert_close(update.a, layer.lora_A["default"].weight.detach(), rtol=error, atol=0)
        scaled = layer.lora_B["default"].weight.detach() * layer.scaling["default"]
        torch.testing.assert_close(update.b, scaled, rtol=error * 1.01, atol=1e-9)


def test_refusals(tmp_path):
    t5, opt = (
        get_peft_model(tiny_model(family), LoraConfig(target_modules=r".*\.0\..*(q|q_proj)"))
        for family in ("t5", "opt")
    )
    head = get_peft_model(tiny_model("bert"), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    shared = tied(target_modules=["q_proj", "lm_head"])
    for model, options, words in (
        (t5, {}, "'t5'"),
        (opt, {}, "'opt'"),
        (head, {}, "classifier"),
        (shared, {}, r"lm_head shares its weight"),
        (adapted_of("llama"), {"dtype": "float64"}, "float64"),
    ):
        with pytest.raises(ValueError, match=words):
            tlora.export(model, tmp_path / "x.gguf", format="gguf", **options)
    assert not list(tmp_path.iterdir())


def test_another_file_is_not_replaced(tmp_path):
    base = model_of("llama")
    write_model(tmp_path / "base.gguf", base, "llama", tensors_of(base, "llama"))
    (tmp_path / "thesis.gguf").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(FileExistsError, match=path.name):
            tlora.export(adapted_of("llama"), path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_of_another_adapter_is_not_read(tmp_path):
    adapted = adapted_of("llama")
    path = tlora.export(adapted, tmp_path, format="gguf")
    names = list(adapter_layers(adapted))
    config = adapted.get_base_model().config
    with pytest.raises(ValueError, match="also holds"):
        read_gguf(path, names[1:], config)
    with pytest.raises(ValueError, match="no matching pair"):
        read_gguf(path, [*names, "model.layers.0.mlp.gate_proj"], config)
