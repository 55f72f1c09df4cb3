"""An exported adapter computes the same in PEFT and in a server that knows one global alpha / r."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tlora
from tests.helpers import tiny_batch, tiny_model
from tests.unit.test_adapter import logits, planned, saved_run, step


def served_with_one_scale(family, folder):
    """What an engine computes that reads one global alpha / r: W + alpha / r * B A, straight from the files."""
    model = tiny_model(family)
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    scale = config["lora_alpha"] / config["r"]
    for key, a in tensors.items():
        if "lora_A" not in key:
            continue
        b = tensors[key.replace("lora_A", "lora_B")]
        module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        with torch.no_grad():
            module.weight += scale * b @ a if module.weight.shape == (len(b), a.shape[1]) else (scale * b @ a).T
    return model


def trained(family):
    model, subspaces, allocation = planned(family)
    adapted = tlora.attach(model, subspaces, allocation)
    for _ in range(3):
        step(adapted, tiny_batch(model))
    return adapted.eval(), allocation


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_every_reader_computes_the_same(family, tmp_path):
    adapted, allocation = trained(family)
    assert len(set(allocation.ranks.values())) > 1
    assert len(set(allocation.scalings.values())) > 1
    batch = tiny_batch(family)
    expected = logits(adapted, batch)
    tlora.export(adapted, tmp_path / "served")
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == max(allocation.ranks.values())
    assert not {"rank_pattern", "alpha_pattern"} & set(config)
    tensors = load_file(tmp_path / "served" / "adapter_model.safetensors")
    assert {min(t.shape) if "lora_A" in k else t.shape[1] for k, t in tensors.items()} == {config["r"]}
    peft = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, batch), expected, atol=1e-5, rtol=0)
    served = served_with_one_scale(family, tmp_path / "served")
    torch.testing.assert_close(logits(served, batch), expected, atol=1e-5, rtol=0)
    # and the folder as trained is what such an engine gets wrong
    saved_run(adapted).save(tmp_path / "trained")
    wrong = served_with_one_scale(family, tmp_path / "trained")
    assert (logits(wrong, batch) - logits(adapted, batch)).abs().max() > 1e-3


def test_the_model_is_only_read_and_the_head_goes_along(tmp_path):
    adapted, _ = trained("bert")
    before = {k: v.clone() for k, v in adapted.state_dict().items()}
    tlora.export(adapted, tmp_path / "served")
    assert all(torch.equal(v, before[k]) for k, v in adapted.state_dict().items())
    peft = PeftModel.from_pretrained(tiny_model("bert", seed=0), str(tmp_path / "served")).eval()
    torch.testing.assert_close(logits(peft, tiny_batch("bert")), logits(adapted, tiny_batch("bert")), atol=1e-5, rtol=0)


def test_refusals(tmp_path):
    with pytest.raises(TypeError, match="export takes"):
        tlora.export(tiny_model("llama"), tmp_path / "x")
    adapted, _ = trained("llama")
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        tlora.export(adapted, tmp_path / "x")
    adapted.unmerge_adapter()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no adapter_config"):
        tlora.export(adapted, tmp_path / "other")
    assert not (tmp_path / "x").exists()


def test_no_hub_is_asked_about_the_base(tmp_path):
    adapted, _ = trained("llama")
    for config in (adapted.peft_config["default"], adapted.config):
        config.base_model_name_or_path = config._name_or_path = "nobody/no-such-model"
    tlora.export(adapted, tmp_path / "served")  # PEFT warns where its question finds no answer
