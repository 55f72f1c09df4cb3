"""An untrained adapter is continued by PEFT alone and by us, from the folder and by the page in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

import tlora
from tests.helpers.adapted import logits, prepare, step, train_once
from tests.helpers.models import tiny_batch, tiny_model
from tlora.adapters.lora_layers import adapter_layers


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def a_matrices(model: Any) -> dict[str, torch.Tensor]:
    return {key: layer.lora_A["default"].weight.detach().clone() for key, layer in adapter_layers(model).items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_peft_continues_from_what_was_attached(family: str, tmp_path: Path) -> None:
    model, subspaces, allocation = prepare(family)
    batch = tiny_batch(model)
    before = logits(model, batch)
    adapted = tlora.attach(model, subspaces, allocation)
    assert tlora.save_initial(adapted, tmp_path / "start") == tmp_path / "start"
    continued = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "start"), is_trainable=True)
    assert torch.equal(logits(continued, batch), before)
    layers = adapter_layers(continued)
    assert {key: layer.r["default"] for key, layer in layers.items()} == allocation.ranks
    assert {key: layer.scaling["default"] for key, layer in layers.items()} == pytest.approx(allocation.scalings)
    assert all(torch.equal(a, a_matrices(adapted)[key]) for key, a in a_matrices(continued).items())
    step(continued, batch)
    assert not torch.equal(logits(continued, batch), before)


@pytest.mark.parametrize("freeze_a", [True, False])
def test_we_continue_with_a_as_it_was_attached(freeze_a: bool, tmp_path: Path) -> None:
    model, subspaces, allocation = prepare()
    tlora.save_initial(tlora.attach(model, subspaces, allocation, freeze_a), tmp_path)
    loaded = tlora.load_adapter(tmp_path, tiny_model("llama"))
    assert all(p.requires_grad != freeze_a for n, p in loaded.named_parameters() if "lora_A" in n)
    with pytest.raises(ValueError, match="another model"):
        tlora.load_adapter(tmp_path, tiny_model("llama", seed=1))


def test_a_trained_adapter_is_never_replaced_and_an_untrained_one_with_its_page(tmp_path: Path) -> None:
    model, subspaces, allocation = prepare()
    adapted = tlora.attach(model, subspaces, allocation)
    tlora.save_initial(adapted, tmp_path)
    step(adapted, tiny_batch(model))
    train_once(adapted).save(tmp_path)
    assert not (tmp_path / "README.md").exists()  # it said that the adapter was not trained
    (tmp_path / "README.md").write_text("mine")
    again = tlora.attach(adapted, subspaces, allocation, replace=True)
    with pytest.raises(FileExistsError, match="written by training"):
        tlora.save_initial(again, tmp_path)
    assert tlora.load_adapter(tmp_path, tiny_model("llama")) is not None
    step(again, tiny_batch(model))
    train_once(again).save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("is_random", [True, False])
def test_the_page_holds_lines_that_work(
    freeze_a: bool, is_random: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    model, subspaces, allocation = prepare()
    model.config._name_or_path = "base"
    adapted = tlora.attach(model, None if is_random else subspaces, allocation, freeze_a)
    tlora.save_initial(adapted, "start")
    text = Path("start/README.md").read_text()
    assert ("`A` starts at random." in text, "`A` starts along directions of kind wc." in text) == (
        is_random,
        not is_random,
    )
    assert ("freeze" in text.lower()) == freeze_a
    peft, trl = blocks(Path("start"), "python")
    there: dict[str, Any] = {}
    exec(peft, there)
    assert torch.equal(logits(there["model"], tiny_batch("llama")), logits(adapted, tiny_batch("llama")))
    trained = {n.split(".")[-3] for n, p in there["model"].named_parameters() if p.requires_grad}
    assert trained == ({"lora_B"} if freeze_a else {"lora_A", "lora_B"})
    compile(trl, "page", "exec")
    factory, axolotl = map(yaml.safe_load, blocks(Path("start"), "yaml"))
    assert (factory["model_name_or_path"], factory["adapter_name_or_path"]) == ("base", "start")
    assert (axolotl["base_model"], axolotl["lora_model_dir"]) == ("base", "start")


def test_refusals(tmp_path: Path) -> None:
    model, subspaces, allocation = prepare()
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(model))
    with pytest.raises(ValueError, match=r"B of model\.layers\.0"):
        tlora.save_initial(adapted, tmp_path)
    tlora.detach(adapted)
    with pytest.raises(ValueError, match="no LoRA layers"):
        tlora.save_initial(adapted, tmp_path)
    assert not list(tmp_path.iterdir())
