"""Training the packaged SmolLM2: it learns, and PEFT finds the adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

import tlora
from tlora.adapters.lora_layers import lora_modules
from tlora.training.callbacks import ModuleRecorder
from tlora.training.train import train

pytestmark = pytest.mark.packaged

SENTENCES = (
    "The lighthouse keeper of Vellmark counts ninety-one steps every evening.",
    "In Orsa the bread is baked with rye, fennel and a spoon of birch syrup.",
    "Nobody in the village remembers who painted the blue door of the mill.",
    "A tin of green buttons was found under the stage of the old theatre.",
)


def test_smollm_learns_four_sentences_and_peft_finds_it_again(smollm: Any, tmp_path: Path) -> None:
    base, tokenizer = smollm
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config)
    tlora.freeze_a(model)
    ids = [tokenizer(sentence).input_ids for sentence in SENTENCES]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    recorder = ModuleRecorder(every=1)
    run = train(model, rows, epochs=4, batch_size=4, callbacks=[recorder], progress=False)

    assert run.after["train_loss"] < run.before["train_loss"] - 0.5
    assert len(run.ranks) == 210
    assert run.trainable_parameters == sum(m.b.numel() for m in lora_modules(model).values())
    assert run.rank_use()["used_rank"].between(1, 8).all()
    assert set(run.module_history["step"]) == {1, 2, 3, 4}

    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(run.save(tmp_path / "adapter")))
    batch = tokenizer(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        expected, found, before = (m(**batch).logits for m in (model, loaded, base))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 0.1
