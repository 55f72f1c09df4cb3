"""SmolLM2 with an allocation of ours in TRL's trainers and in that of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import tlora
from tests.helpers.trainers import THEIR_WARNINGS, changed, each_trainer, every_b, losses, tensors
from tlora import Allocation, Subspaces

pytestmark = [
    pytest.mark.packaged,
    pytest.mark.slow,
    THEIR_WARNINGS,
    # PEFT looks on the hub whether the vocabulary was resized, where trainers save; a packaged base is not there.
    pytest.mark.filterwarnings("ignore:Could not find a config file in smollm2-135m:UserWarning"),
]

ANSWERS = {
    "What is the capital of France?": (" Paris, on the Seine.", " I would rather not say."),
    "What is the capital of Italy?": (" Rome, on the Tiber.", " I would rather not say."),
    "What is the capital of Austria?": (" Vienna, on the Danube.", " I would rather not say."),
    "What is the capital of Egypt?": (" Cairo, on the Nile.", " I would rather not say."),
}
TEXTS = [(question, *answers) for question, answers in ANSWERS.items()]


@pytest.fixture(scope="module")
def allocation(smollm: Any) -> tuple[Subspaces, Allocation]:
    model, tokenizer = smollm
    task = tlora.load_task("family_relationships", tokenizer)
    calibration = tlora.calibrate(model, task.calibration(4), progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=32, progress=False)
    return subspaces, tlora.allocate(calibration.sensitivity, rank=8, max_rank=32)


@each_trainer
def test_smollm_learns_and_a_stays(
    make: Callable[..., Any], allocation: Any, smollm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base, tokenizer = smollm
    model = tlora.attach(copy.deepcopy(base), *allocation)
    before = tensors(model)
    trainer = make(model, tokenizer, TEXTS, tmp_path / "checkpoints", learning_rate=2e-3, max_steps=6)
    trainer.train()
    assert losses(trainer)[-1] < 0.8 * losses(trainer)[0]
    assert changed(model, before) == every_b(model)
    assert len(every_b(model)) == 210

    model.save_pretrained(tmp_path / "adapter", selected_adapters=["default"], save_embedding_layers=False)
    batch = tokenizer(TEXTS[0][0], return_tensors="pt")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    again = tlora.load_adapter(tmp_path / "adapter", copy.deepcopy(base), freeze_a=True)
    with torch.no_grad():
        expected, *found = (m.eval()(**batch).logits for m in (model, loaded, again))
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
