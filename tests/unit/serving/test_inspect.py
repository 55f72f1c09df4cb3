"""What `inspect` says of an adapter: against PEFT's own layers, a dense SVD, and each engine's rule done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.models import tiny_model

RANKS = {"model.layers.0.mlp.down_proj": 3, "model.layers.1.self_attn.q_proj": 5}
ALPHAS = {"model.layers.0.mlp.down_proj": 12, "model.layers.1.self_attn.v_proj": 1}


def adapter(folder: Path, **changes) -> PeftModel:
    """Somebody's adapter, by PEFT alone: ranks and alphas by suffix, B not zero."""
    arguments = {"r": 2, "lora_alpha": 4, "rank_pattern": RANKS, "alpha_pattern": ALPHAS}
    arguments |= {"target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False} | changes
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(**arguments))
    model.save_pretrained(folder)
    return model


def layers(model: PeftModel) -> dict[str, torch.nn.Module]:
    modules = {name.removeprefix("base_model.model."): m for name, m in model.named_modules()}
    return {name: m for name, m in modules.items() if hasattr(m, "lora_A")}


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_rewrote_its_base_is_read_by_peft_alone(tmp_path, start):
    adapter(tmp_path, init_lora_weights=start, alpha_pattern={}, rank_pattern={})
    engines = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert list(engines.index[engines == ""]) == ["PEFT 0.15 and later"]
    assert all(start in why for why in engines.drop("mlx-lm 0.32") if why)


def test_lora_of_a_parameter_is_read_by_peft_alone(tmp_path):
    """`export` and `compress` refuse it, too."""
    parameters = {"target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"]}
    adapter(tmp_path, **parameters, alpha_pattern={}, rank_pattern={})
    engines = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert list(engines.index[engines == ""]) == ["PEFT 0.15 and later"]


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_and_singular_values_are_those_of_peft(tmp_path, rslora):
    model = adapter(tmp_path, use_rslora=rslora)
    seen = tlora.inspect(tmp_path)
    layers_of_peft = layers(model)
    assert seen.ranks == {name: layers_of_peft[name].r["default"] for name in seen.names}
    assert seen.scalings == pytest.approx({name: layers_of_peft[name].scaling["default"] for name in seen.names})
    for name, layer in layers_of_peft.items():
        dense = layer.get_delta_weight("default").detach().double().numpy()
        sigma = np.linalg.svd(dense, compute_uv=False)[: seen.ranks[name]]
        np.testing.assert_allclose(seen.singular_values[name], sigma, rtol=1e-4, atol=1e-6)
        assert seen.shapes[name] == dense.shape


def test_each_engine_computes_what_its_rule_says(tmp_path):
    adapter(tmp_path)
    seen = tlora.inspect(tmp_path)
    trained = {n: ALPHAS.get(n, 4) / RANKS.get(n, 2) for n in seen.names}
    one = {n: 4 / 2 for n in seen.names}
    own = {n: 4 / RANKS.get(n, 2) for n in seen.names}
    engines = seen.engines().set_index("engine")
    for engine, reads in (("vLLM 0.31 and earlier", one), ("TensorRT-LLM", own), ("vLLM 0.32", trained)):
        ratios = [reads[n] / trained[n] for n in seen.names]
        row = engines.loc[engine]
        assert row["wrong"] == sum(ratio != 1 for ratio in ratios)
        assert (row["smallest"], row["largest"]) == pytest.approx((min(ratios), max(ratios)))
    assert "another rank than r = 2" in engines.loc["SGLang 0.5", "refused"]
    assert "3 different ranks" in engines.loc["LoRAX, TGI", "refused"]


def test_who_reads_rslora_scales_it_by_the_root_of_the_rank(tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    engines = tlora.inspect(tmp_path).engines().set_index("engine")
    for engine in ("PEFT 0.15 and later", "vLLM 0.32", "vLLM 0.31 and earlier", "LoRAX, TGI"):
        assert engines.loc[engine, "wrong"] == 0
    for engine in ("SGLang 0.5", "TensorRT-LLM", "llama.cpp, by its converter"):
        assert engines.loc[engine, "wrong"] == 4
        assert engines.loc[engine, "largest"] == pytest.approx(0.5)  # 8 / 4 for 8 / sqrt(4)


def test_an_exported_adapter_is_read_as_trained_by_all(tmp_path):
    adapter(tmp_path / "trained")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "trained"))
    tlora.export(loaded, tmp_path / "served")
    engines = tlora.inspect(tmp_path / "served").engines()
    assert not engines["wrong"].any()
    assert list(engines.loc[engines["refused"] != "", "engine"]) == ["mlx-lm 0.32"]
    before, after = tlora.inspect(tmp_path / "trained"), tlora.inspect(tmp_path / "served")
    for name, sigma in before.singular_values.items():
        torch.testing.assert_close(after.singular_values[name][: len(sigma)], sigma, rtol=1e-4, atol=1e-6)
    assert list(after.rank_use()["used_rank"]) == list(before.rank_use()["used_rank"])


def test_layers_come_in_their_order(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model("llama", num_hidden_layers=12), config).save_pretrained(tmp_path)
    names = tlora.inspect(tmp_path).names
    assert [int(name.split(".")[2]) for name in names] == list(range(12))


DAMAGE = {
    "bin": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), FileNotFoundError, "code"),
    "alpha": (lambda f: edit_config(f, lora_alpha=None), ValueError, "adapter_config"),
    "rank": (lambda f: edit_config(f, rank_pattern={}), ValueError, "rank 3"),
    "half": (lambda f: edit_tensors(f, lambda t: t.pop(next(k for k in t if "lora_B" in k))), ValueError, "lora_B"),
}


def edit_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE.values(), ids=DAMAGE)
def test_refusals(tmp_path, damage, error, words):
    adapter(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=words):
        tlora.inspect(tmp_path)


def test_a_model_is_inspected_once_it_is_saved():
    with pytest.raises(TypeError, match="PeftModel"):
        tlora.inspect(adapted_model())
