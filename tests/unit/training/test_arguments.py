"""Training: what changes and what does not, reproducibility, checkpoints, and the ways it can end."""

import contextlib
import math
from functools import cached_property
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers import TrainingArguments

import tlora
from tests.helpers.adapted import adapted_model, condition, token_rows
from tests.helpers.trainings import state_of
from tlora.training.arguments import check_gpu
from tlora.training.train import train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"learning_rate": math.nan}, ValueError, "learning_rate"),
    ({"epochs": -1}, ValueError, "epochs"),
    ({"batch_size": 2.5}, TypeError, "batch_size"),
    ({"evaluation_limit": -1}, ValueError, "evaluation_limit"),
    ({"learning_rat": 1}, TypeError, "did you mean learning_rate"),
    ({"zzzzzz": 1}, TypeError, "see transformers.TrainingArguments"),
    ({"num_train_epochs": 2}, TypeError, "epochs="),
    ({"do_train": True}, TypeError, "do_train"),
    ({"lr_scheduler_type": "cosin"}, ValueError, "cosin"),
    ({"save_strategy": "epoch"}, ValueError, "output_dir="),
    ({"report_to": "nobody"}, ValueError, "report_to='nobody'"),
    ({"max_steps": 0}, ValueError, "max_steps=0"),
    ({"auto_find_batch_size": True}, ValueError, "auto_find_batch_size=True"),
    ({"metric_for_best_model": "exact_match"}, ValueError, "metric_for_best_model='exact_match'"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSALS, ids=str)
def test_refusals_come_before_anything_runs(change: dict[str, Any], error: type[Exception], words: str) -> None:
    model = adapted_model()
    before, state = state_of(model), condition(model)
    with pytest.raises(error, match=words):
        train(model, token_rows(), **(QUICK | change))
    assert condition(model) == state
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_of_several_gpus_one_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, the Trainer would give a batch to each of them, in half the steps."""

    def two_gpus(arguments: TrainingArguments) -> torch.device:
        arguments.distributed_state, arguments._n_gpu = PartialState(cpu=True), 2
        return torch.device("cpu")

    devices = cached_property(two_gpus)
    devices.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", devices)
    run = tlora.train(adapted_model("llama"), token_rows(8), **QUICK, evaluation_limit=0, use_cpu=False)
    assert len(run.history) == 2
    assert run.history["loss"].notna().all()


@pytest.mark.parametrize(
    ("device", "rank", "visible", "says"),
    [
        ("cuda", "1", None, None),
        ("cuda:1", "1", None, None),
        ("cuda:0", "-1", None, None),
        ("cpu", "1", None, None),
        ("cuda:1", None, "2,3", "CUDA_VISIBLE_DEVICES=3"),
        ("cuda:0", "1", None, "cuda:1"),
    ],
)
def test_the_gpu_of_a_process_is_the_only_one_allowed(
    device: str, rank: str | None, visible: str | None, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", rank), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says) if says else contextlib.nullcontext():
        check_gpu(torch.device(device))
