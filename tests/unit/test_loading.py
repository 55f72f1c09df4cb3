"""Several adapters on one base: loaded beside each other, switched, trained, taken off and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import tlora
from tests.adapted import quick_collections  # noqa: F401
from tests.helpers import tiny_batch, tiny_model
from tests.unit.test_adapter import logits, planned, saved_run, step
from tlora.adapters.lora_layers import adapter_layers

QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}
BATCH = tiny_batch("llama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trained adapters of one base, of different plans."""
    place = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, knobs) in enumerate({"one": {}, "two": {"ranks": False}}.items()):
        model, subspaces, allocation = planned(**knobs)
        adapted = tlora.attach(model, subspaces, allocation)
        step(adapted, tiny_batch("llama", seed=seed))
        made[name] = saved_run(adapted).save(place / name)
    return made


def both(folders: dict[str, Path]) -> PeftModel:
    return tlora.load(folders["two"], tlora.load(folders["one"], tiny_model("llama"), name="one"), name="two")


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def of(model: nn.Module, part: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if part in name}


def test_each_computes_what_it_does_alone(folders: dict[str, Path]) -> None:
    model = both(folders).eval()
    assert model.active_adapters == ["two"]
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("llama"), str(folders[name]))
        assert torch.equal(logits(model, BATCH), logits(alone, BATCH))
    with model.disable_adapter():
        assert torch.equal(logits(model, BATCH), logits(tiny_model("llama"), BATCH))


def test_a_stays_frozen_in_each(folders: dict[str, Path]) -> None:
    model = both(folders)
    assert trainable(model) == of(model, "lora_B.two")
    with model.disable_adapter():
        pass
    assert trainable(model) == of(model, "lora_B.two")
    model.set_adapter("one")
    assert trainable(model) == of(model, "lora_B.one")
    with model.disable_adapter():
        pass
    model.set_adapter("two")
    assert trainable(model) == of(model, "lora_B.two")


def test_one_is_trained_on_and_saved_beside_the_other(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(4)])
    model = both(folders)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = tlora.train(model, rows, **QUICK)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == of(model, "lora_B.two")
    again = tlora.load(run.save(tmp_path / "two"), tiny_model("llama"))
    assert torch.equal(logits(again.eval(), BATCH), logits(model.eval(), BATCH))
    model.set_adapter("one")
    alone = tlora.load(folders["one"], tiny_model("llama"))
    assert torch.equal(logits(model, BATCH), logits(alone.eval(), BATCH))


def test_taking_them_off_gives_the_base(folders: dict[str, Path]) -> None:
    reference = tiny_model("llama").state_dict()
    for take_off in (lambda model: model.unload(), lambda model: tlora.detach(model) or model.get_base_model()):
        base = take_off(both(folders))
        assert not adapter_layers(base)
        state = base.state_dict()
        assert state.keys() == reference.keys()
        assert all(torch.equal(state[key], reference[key]) for key in reference)


def test_the_active_one_is_merged_and_only_once(folders: dict[str, Path]) -> None:
    model = both(folders)
    model.set_adapter("one")
    expected = logits(model.eval(), BATCH)
    merged = tlora.merge(model)
    torch.testing.assert_close(logits(merged, BATCH), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no adapter left to merge"):
        tlora.merge(model)
    with pytest.raises(TypeError, match="merge takes"):
        tlora.merge(merged)
    torch.testing.assert_close(logits(merged, BATCH), expected, atol=1e-5, rtol=0)


def test_what_cannot_stand_beside_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tlora.load(folders["one"], tiny_model("llama"))
    with pytest.raises(ValueError, match=r"already has an adapter called 'default': .*another name="):
        tlora.load(folders["two"], model)
    other = tlora.load(folders["one"], tiny_model("llama"))
    nn.init.normal_(other.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").base_layer.weight)
    with pytest.raises(ValueError, match="of another model"):
        tlora.load(folders["two"], other, name="two")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        tlora.load(folders["two"], model, name="two")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("llama", r"model is a str: pass a model, such as tlora\.load_model\('llama'\)\[0\]"),
        ((tiny_model("llama"), None), r"model is a tuple: pass a model, such as tlora\.load_model\(\.\.\.\)\[0\]"),
    ],
    ids=["name", "pair"],
)
def test_what_is_no_model_is_refused(model: Any, words: str, folders: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match=words):
        tlora.load(folders["one"], model)


def test_what_fails_leaves_the_others_as_they_were(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tlora.load(folders["one"], tiny_model("llama"), name="one")
    before = ([name for name, _ in model.named_parameters()], trainable(model), logits(model, BATCH))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tlora.adapters.load.freeze", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.load(folders["two"], model, name="two")
    assert model.active_adapters == ["one"]
    assert [name for name, _ in model.named_parameters()] == before[0]
    assert trainable(model) == before[1]
    assert torch.equal(logits(model, BATCH), before[2])
    tlora.load(folders["two"], model, name="two")  # and may be tried again


def test_freezing_can_be_said(folders: dict[str, Path], tmp_path: Path) -> None:
    thawed = tlora.load(folders["one"], tiny_model("llama"), freeze_a=False)
    assert trainable(thawed) == of(thawed, "lora_")
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    for freeze_a, part in ((None, "lora_"), (True, "lora_B")):
        foreign = tlora.load(tmp_path, tiny_model("llama"), freeze_a=freeze_a)
        foreign.set_adapter("default")
        assert trainable(foreign) == of(foreign, part)


def test_heads_stand_beside_each_other(tmp_path: Path) -> None:
    batch, folders = tiny_batch("bert"), {}
    for seed, name in enumerate(("one", "two")):
        adapted = tlora.attach(*planned("bert"))
        step(adapted, tiny_batch("bert", seed=seed))
        folders[name] = saved_run(adapted).save(tmp_path / name)
    model = tlora.load(folders["two"], tlora.load(folders["one"], tiny_model("bert"), name="one"), name="two").eval()
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("bert"), str(folders[name]))
        assert torch.equal(logits(model, batch), logits(alone, batch))
