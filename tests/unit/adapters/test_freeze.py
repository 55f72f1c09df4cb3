"""A stays frozen, whatever PEFT and trainers do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import TrainerCallback

import tlora
from tests.helpers.adapted import rising_allocation
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.trainers import THEIR_WARNINGS, by_hand, sft
from tests.helpers.training_steps import stored_bytes
from tlora.resources.simulated_model import switch_checkpointing

TEXTS = [(f"w{4 + n} w9", f"w{10 + n} w7 w8", "") for n in range(8)]


def part(model: torch.nn.Module, which: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if which in name}


def trainable(model: torch.nn.Module) -> set[str]:
    return {word for n, p in model.named_parameters() if p.requires_grad for word in ("lora_A", "lora_B") if word in n}


@pytest.fixture
def reloaded(tmp_path: Path) -> PeftModel:
    """What another trainer has of a saved adapter: A is trainable."""
    model = tiny_model("llama")
    tlora.attach(model, None, rising_allocation(model)).save_pretrained(tmp_path / "saved")
    adapted = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "saved"), is_trainable=True)
    assert trainable(adapted) == {"lora_A", "lora_B"}
    return adapted


def test_through_switches_of_adapters(reloaded: PeftModel) -> None:
    tlora.freeze_a(reloaded)
    assert trainable(reloaded) == {"lora_B"}
    with reloaded.disable_adapter():
        pass
    assert trainable(reloaded) == {"lora_B"}
    reloaded.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    reloaded.set_adapter("other")
    assert trainable(reloaded) == {"lora_A", "lora_B"}
    reloaded.set_adapter("default")
    assert trainable(reloaded) == {"lora_B"}


@THEIR_WARNINGS
@pytest.mark.parametrize("make", [by_hand, sft])
@pytest.mark.parametrize("added", [False, True])
def test_in_a_trainer_and_in_one_that_resumes(make: Any, added: bool, reloaded: PeftModel, tmp_path: Path) -> None:
    before = part(reloaded, "lora_A")

    def make_trainer(model: PeftModel, **more: Any) -> Any:
        trainer = make(model, tiny_tokenizer(), TEXTS, tmp_path, callbacks=[] if added else [tlora.FreezeA()], **more)
        if added:
            trainer.add_callback(tlora.FreezeA)
        return trainer

    make_trainer(reloaded, save_steps=4, save_strategy="steps").train()
    assert all(torch.equal(a, before[name]) for name, a in part(reloaded, "lora_A").items())
    assert all(b.any() for b in part(reloaded, "lora_B").values())

    again = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "saved"), is_trainable=True)
    make_trainer(again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(a, before[name]) for name, a in part(again, "lora_A").items())
    for name, b in part(again, "lora_B").items():
        torch.testing.assert_close(b, part(reloaded, "lora_B")[name], atol=1e-6, rtol=1e-5)


def test_the_optimizer_has_no_states_of_a(reloaded: PeftModel, tmp_path: Path) -> None:
    trainer = by_hand(reloaded, tiny_tokenizer(), TEXTS, tmp_path, callbacks=[tlora.FreezeA()])
    optimized = {id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert optimized == {id(p) for name, p in reloaded.named_parameters() if "lora_B" in name}


def test_an_embedding_has_its_a_frozen_too() -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    tlora.freeze_a(model)
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for name, p in model.named_parameters() if "_A" in name)
    assert all(p.requires_grad for name, p in model.named_parameters() if "_B" in name)


def test_what_has_no_a_is_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="LoRA adapter"):
        tlora.freeze_a(get_peft_model(tiny_model("llama"), config))


LENGTH = 8
ROWS = Dataset.from_list([{"input_ids": list(range(4 + n, 4 + n + LENGTH)), "labels": [5] * LENGTH} for n in range(8)])
QUICK: dict[str, Any] = {"batch_size": 2, "progress": False, "evaluation_limit": 0, "learning_rate": 1e-3}


class StoredBytes(TrainerCallback):
    """The bytes that autograd stores in each step of a training."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.context = stored_bytes(kwargs["model"])
        self.sizes = self.context.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.context.__exit__(None, None, None)
        self.steps.append(sum(self.sizes))


def stored_in_a_step(model: PeftModel) -> int:
    ids = torch.tensor(ROWS["input_ids"])
    with stored_bytes(model) as sizes:
        model.train()(input_ids=ids, labels=ids).loss.backward()
    return sum(sizes)


def attached(freeze_a: bool = True) -> PeftModel:
    base = tiny_model("llama")
    return tlora.attach(base, None, rising_allocation(base), freeze_a)


def saving(disturb: Callable[[PeftModel], object] = lambda model: None) -> int:
    """Bytes that a step stores less with A frozen, after something has been done to the model."""
    stored = []
    for freeze_a in (True, False):
        model = attached(freeze_a)
        disturb(model)
        stored.append(stored_in_a_step(model))
    return stored[1] - stored[0]


def look_at_the_base(model: PeftModel) -> None:
    with model.disable_adapter():
        model.eval()(input_ids=torch.tensor(ROWS["input_ids"]))


def checkpoint_and_stop(model: PeftModel) -> None:
    base = model.get_base_model()
    switch_checkpointing(base, "enable", {"use_reentrant": False})
    stored_in_a_step(model)
    switch_checkpointing(base, "disable")


@pytest.mark.parametrize(
    "disturb",
    [
        look_at_the_base,
        lambda model: model.set_adapter("default"),
        lambda model: model.eval()(input_ids=torch.tensor(ROWS["input_ids"])),
        checkpoint_and_stop,
        lambda model: tlora.train(model, ROWS, max_steps=2, gradient_checkpointing=True, **QUICK),
    ],
    ids=["disable_adapter", "set_adapter", "evaluation", "checkpointing", "training"],
)
def test_nothing_gives_back_the_activations_that_freezing_saves(disturb: Any) -> None:
    assert saving(disturb) == saving() > 0.05 * stored_in_a_step(attached())


def test_preparing_for_quantized_training_leaves_the_saving() -> None:
    base = prepare_model_for_kbit_training(tiny_model("llama"), use_gradient_checkpointing=False)
    adapted = tlora.attach(base, None, rising_allocation(base))
    assert stored_in_a_step(adapted) == stored_in_a_step(attached()) < 0.95 * stored_in_a_step(attached(freeze_a=False))


def test_a_training_stores_as_little_after_a_resume(tmp_path: Path) -> None:
    resumed, frozen, trained = StoredBytes(), StoredBytes(), StoredBytes()
    options = QUICK | {"max_steps": 2, "save_steps": 1, "output_dir": tmp_path}
    tlora.train(attached(), ROWS, **options)
    tlora.train(attached(), ROWS, callbacks=resumed, **options | {"max_steps": 4, "resume": True})
    for callback, freeze_a in ((frozen, True), (trained, False)):
        tlora.train(attached(freeze_a), ROWS, callbacks=callback, max_steps=2, **QUICK)
    assert resumed.steps == frozen.steps
    assert max(frozen.steps) < 0.95 * min(trained.steps)
