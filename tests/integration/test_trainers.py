"""An adapter of ours in the trainers of others: they train B, and find A and the base as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from peft import PeftModel

import tlora
from tests.helpers.adapted import logits, prepare
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.trainers import THEIR_WARNINGS, changed, dpo, each_trainer, every_b, losses, sft, tensors

pytestmark = [THEIR_WARNINGS, pytest.mark.rest]
TEXTS = [(f"w{4 + n} w9", f"w{10 + n} w7 w8", f"w{20 + n} w17 w18") for n in range(8)]


def attached() -> PeftModel:
    return tlora.attach(*prepare())


@each_trainer
def test_b_alone_is_trained_and_saved(make: Callable[..., Any], tmp_path: Path) -> None:
    model, batch = attached(), tiny_batch("llama")
    before = tensors(model)
    trainer = make(model, tiny_tokenizer(), TEXTS, tmp_path / "checkpoints")
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    assert trainer.evaluate()["eval_loss"] < losses(trainer)[0]
    assert changed(model, before) == every_b(model)

    trainer.save_model(str(tmp_path / "adapter"))
    expected = logits(model.eval(), batch)
    for loaded in (
        PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter")),
        tlora.load_adapter(tmp_path / "adapter", tiny_model("llama")),
    ):
        torch.testing.assert_close(logits(loaded, batch), expected, atol=1e-6, rtol=0)


@each_trainer
def test_a_resumed_run_is_the_undisturbed_one(make: Callable[..., Any], tmp_path: Path) -> None:
    """Loading a checkpoint is one of the occasions on which PEFT makes A trainable."""
    make(whole := attached(), tiny_tokenizer(), TEXTS, tmp_path, save_steps=4, save_strategy="steps").train()
    resumed = attached()
    before = tensors(resumed)
    make(resumed, tiny_tokenizer(), TEXTS, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert changed(resumed, before) == every_b(resumed)
    if make is dpo and Version(transformers.__version__) < Version("5.23"):
        return  # B is not read from a checkpoint that holds a reference, too
    for name, tensor in tensors(resumed).items():
        torch.testing.assert_close(tensor, tensors(whole)[name], atol=1e-6, rtol=1e-5)


def test_what_others_trained_is_trained_on_here_and_the_other_way_round(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(4)])
    model = attached()
    before = tensors(model)
    tlora.train(model, rows, batch_size=2, evaluation_limit=0, progress=False)
    sft(model, tiny_tokenizer(), TEXTS, tmp_path / "one").train()
    run = tlora.train(model, rows, batch_size=2, evaluation_limit=0, progress=False)
    assert run.frozen_a
    assert changed(model, before) == every_b(model)


def test_a_trained_a_stays_trainable_in_them(tmp_path: Path) -> None:
    model = tlora.attach(*prepare(), freeze_a=False)
    before = tensors(model)
    sft(model, tiny_tokenizer(), TEXTS, tmp_path).train()
    assert changed(model, before) == {name for name in before if "lora_" in name}
