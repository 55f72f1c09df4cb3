"""What a run of a comparison keeps of each sample."""

import pytest
import torch
from datasets import Dataset

import tlora
from tests.helpers.jobs import LABELS, PAIRS
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.tasks.evaluation import evaluate_samples


def tiny_task(family: str) -> tlora.Task:
    rows = LABELS if family == "bert" else PAIRS
    parts = {"train": rows[:4], "validation": rows[15:20], "test": rows[4:15]}
    architecture = "seq2seq" if family == "t5" else None
    splits = {k: Dataset.from_list(v) for k, v in parts.items()}
    return tlora.load_task(splits, tiny_tokenizer(), architecture=architecture)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_outcomes_are_what_the_metrics_are_the_means_of(family):
    model, task = tiny_model(family), tiny_task(family)
    found = evaluate_samples(model, task, task.test, 3, progress=False)
    expected = task.evaluate(model, "test")
    for name, values in found.items():
        assert len(values) == 11
        assert values.mean() == pytest.approx(expected[name], rel=1e-5)
    assert {"loss", task.metric} <= found.keys()
    with torch.no_grad():  # of one sample alone, as the model itself says it
        batch = task.collate([task.test[3]])
        loss, tokens = model(**batch).loss.item(), int((batch["labels"] != -100).sum())
    all_tokens = sum(int((task.collate([row])["labels"] != -100).sum()) for row in task.test)
    assert found["loss"][3] == pytest.approx(loss * tokens * 11 / all_tokens, rel=1e-4)
