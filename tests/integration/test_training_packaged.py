"""Training the packaged SmolLM2: it learns, PEFT finds the adapter, and watching costs next to nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

from tlora.adapter import freeze
from tlora.monitoring import ModuleRecorder, lora_modules
from tlora.training import train

pytestmark = pytest.mark.packaged

SENTENCES = (
    "The lighthouse keeper of Vellmark counts ninety-one steps every evening.",
    "In Orsa the bread is baked with rye, fennel and a spoon of birch syrup.",
    "Nobody in the village remembers who painted the blue door of the mill.",
    "A tin of green buttons was found under the stage of the old theatre.",
)


class Timed(ModuleRecorder):
    """Adds up the time that recording takes, and takes a record at each step."""

    seconds = 0.0

    def _timed(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        call(*args, **kwargs)
        self.seconds += time.perf_counter() - started

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._timed(super().on_pre_optimizer_step, *args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._timed(super().on_step_end, *args, **kwargs)


def test_smollm_learns_four_sentences_and_peft_finds_it_again(smollm: Any, tmp_path: Path) -> None:
    base, tokenizer = smollm
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config)
    for module in lora_modules(model).values():
        freeze(module.layer)
    ids = [tokenizer(sentence).input_ids for sentence in SENTENCES]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    recorder = Timed(every=1)
    run = train(model, rows, epochs=4, batch_size=4, callbacks=[recorder], progress=False)

    assert run.after["train_loss"] < run.before["train_loss"] - 0.5
    assert len(run.ranks) == 210
    assert run.trainable_parameters == sum(m.b.numel() for m in lora_modules(model).values())
    assert run.rank_use()["used_rank"].between(1, 8).all()
    # By default one step in ten is recorded.
    assert recorder.seconds / 10 < 0.02 * run.seconds

    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(run.save(tmp_path / "adapter")))
    batch = tokenizer(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        expected, found, before = (m(**batch).logits for m in (model, loaded, base))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 0.1
