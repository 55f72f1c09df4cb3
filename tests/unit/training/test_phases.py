"""Rates of parts, and when A is frozen, seen in what is trained step by step."""

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.helpers.adapted import adapted_model, token_rows
from tlora.adapters.lora_layers import lora_updates
from tlora.training.train import train


class Watch(TrainerCallback):
    """Whether A and B have moved in each step."""

    def __init__(self) -> None:
        self.moved: list[dict[str, bool]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = self._parts(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, before = self._parts(kwargs["model"]), self.before
        self.moved.append({part: not all(map(torch.equal, now[part], before[part])) for part in now})
        self.before = now

    def _parts(self, model: Any) -> dict[str, list[torch.Tensor]]:
        modules = lora_updates(model).values()
        return {"a": [m.a.detach().clone() for m in modules], "b": [m.b.detach().clone() for m in modules]}


def lora(family: str = "llama") -> Any:
    """A and B are trained, and each has a gradient."""
    model = adapted_model(family, declare_frozen=False)
    for module in lora_updates(model).values():
        module.a.requires_grad_(True)
        torch.nn.init.normal_(module.b, generator=torch.Generator().manual_seed(0))
    return model


def test_the_first_step_of_adamw_is_the_rate_of_each_part_whatever_the_gradient() -> None:
    model = lora("bert")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    rates = {"learning_rate": 0.01, "a_learning_rate": 0.003, "head_learning_rate": 0.07}
    train(model, token_rows(classes=2), max_steps=1, warmup_steps=0, progress=False, **rates)
    for name, parameter in model.named_parameters():
        if name in before:
            rate = 0.003 if "lora_A" in name else 0.01 if "lora_B" in name else 0.07
            assert (parameter - before[name]).abs().median().item() == pytest.approx(rate, rel=0.01), name


def test_a_moves_until_it_is_frozen_and_can_be_trained_afterwards() -> None:
    model, watch = lora(), Watch()
    train(model, token_rows(), freeze_a_after=0.4, max_steps=5, batch_size=2, callbacks=[watch], warmup_steps=0,
          progress=False)  # fmt: skip
    assert [moved["a"] for moved in watch.moved] == [True, True, False, False, False]
    assert all(moved["b"] for moved in watch.moved)
    assert all(module.a.requires_grad for module in lora_updates(model).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"a_learning_rate": 0.1}, "a_learning_rate=0.1"),
        ({"freeze_a_after": 0.5}, "freeze_a_after=0.5"),
        ({"head_learning_rate": 0.1}, "head_learning_rate=0.1"),
        ({"head_learning_rate": -1}, "head_learning_rate"),
        ({"freeze_a_after": 20}, "freeze_a_after"),
        ({"freeze_a_after": 1}, "freeze_a_after=1"),
        ({"freeze_a_after": 0}, "freeze_a_after=0"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    model = adapted_model("llama")
    with pytest.raises(ValueError, match=words):
        train(model, token_rows(), progress=False, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": 4, "freeze_a_after": 0.9}, "trained to the end"),
        ({"max_steps": 1, "freeze_a_after": 0.2, "warmup_steps": 0}, "trained to the end"),
        ({"max_steps": 4, "freeze_a_after": 0.1, "warmup_steps": 0}, "before it moved"),  # B is zero in the first step
        ({"max_steps": 4, "freeze_a_after": 0.5, "warmup_steps": 1}, "before it moved"),
    ],
)
def test_a_share_of_the_steps_that_changes_nothing_is_told(options: dict[str, Any], words: str) -> None:
    model = adapted_model("llama", declare_frozen=False)
    for module in lora_updates(model).values():
        module.a.requires_grad_(True)
    with pytest.warns(UserWarning, match=words):
        train(model, token_rows(), batch_size=2, progress=False, **options)


def test_a_share_of_the_steps_that_has_an_effect_warns_of_nothing() -> None:
    model = adapted_model("llama", declare_frozen=False)
    for module in lora_updates(model).values():
        module.a.requires_grad_(True)
    train(model, token_rows(), batch_size=2, progress=False, max_steps=4, freeze_a_after=0.5, warmup_steps=0)


def test_a_resumed_training_freezes_at_the_same_step_and_has_the_same_parts(tmp_path: Any) -> None:
    rows = token_rows()
    shape: dict[str, Any] = {"batch_size": 2, "save_steps": 2, "progress": False, "output_dir": tmp_path}
    whole = lora()
    train(whole, rows, max_steps=6, freeze_a_after=0.5, **shape)
    again, watch = lora(), Watch()
    with pytest.raises(ValueError, match=r"freeze_a_after=0\.5"):
        train(again, rows, max_steps=6, freeze_a_after=0.9, resume=True, **shape)
    train(again, rows, max_steps=6, freeze_a_after=0.5, resume=tmp_path / "checkpoint-4", callbacks=[watch], **shape)
    assert [moved["a"] for moved in watch.moved] == [False, False]
    for one, other in zip(lora_updates(whole).values(), lora_updates(again).values(), strict=True):
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)
