"""Training: what changes and what does not, reproducibility, checkpoints, and the ways it can end."""

import contextlib
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainingArguments

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.commands import invoke
from tests.helpers.models import tiny_tokenizer
from tests.helpers.trainings import condition_of, state_of
from tlora.training.arguments import check_card
from tlora.training.train import train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate"),
        ({"epochs": -1}, ValueError, "epochs must be above 0 and finite, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size=0: use a whole number of at least 1"),
        ({"batch_size": 2.5}, ValueError, "batch_size"),
        ({"evaluation_limit": -1}, ValueError, "evaluation_limit"),
        ({"learning_rat": 1}, TypeError, "no argument 'learning_rat': did you mean learning_rate"),
        ({"wram_up_steps": 1}, TypeError, "did you mean warmup_steps"),
        ({"zzzzzz": 1}, TypeError, "see transformers.TrainingArguments"),
        ({"num_train_epochs": 2}, TypeError, "takes epochs= in place of num_train_epochs="),
        ({"do_train": True}, TypeError, "no argument 'do_train'"),
        ({"lr_scheduler_type": "cosin"}, ValueError, "cosin"),
        ({"eval_strategy": "epoch"}, ValueError, "needs validation samples"),
        ({"save_strategy": "epoch"}, ValueError, "pass output_dir="),
    ],
)
def test_refuses_arguments_before_anything_runs(change: dict, error: type, message: str) -> None:
    model = adapted_model()
    before, condition = state_of(model), condition_of(model)
    with pytest.raises(error, match=message):
        train(model, token_rows(), **(QUICK | change))
    assert condition_of(model) == condition
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def answers() -> Dataset:
    return Dataset.from_list([{"prompt": f"w{5 + n} w9", "completion": f"w{5 + n}"} for n in range(24)])


def test_the_best_checkpoint_by_another_metric_is_refused_before_training(tmp_path: Any) -> None:
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "output_dir": tmp_path}
    task = tlora.load_task(answers(), tiny_tokenizer())
    with pytest.raises(ValueError, match="metric_for_best_model='exact_match': during training the loss alone"):
        tlora.train(adapted_model(), task, metric_for_best_model=task.metric, progress=False, **best)
    assert tlora.train(adapted_model(), task, metric_for_best_model="eval_loss", progress=False, **best).steps


QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": 0}, "max_steps=0: use a whole number of at least 1"),
        ({"max_steps": -5}, "max_steps=-5: use a whole number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: use a whole number"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True begins again with what was trained"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], words: str) -> None:
    model = adapted_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=words):
        tlora.train(model, token_rows(8), **QUIET | options)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_of_several_cards_one_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, the Trainer would give a batch to each of them, and half of the steps be done."""

    def two_cards(arguments: TrainingArguments) -> torch.device:
        arguments.distributed_state, arguments._n_gpu = PartialState(cpu=True), 2
        return torch.device("cpu")

    devices = cached_property(two_cards)
    devices.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", devices)
    run = tlora.train(adapted_model("llama"), token_rows(8), **QUIET, use_cpu=False)
    assert len(run.history) == 2
    assert run.history["loss"].notna().all()


def test_a_card_that_the_trainer_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would train on its own, and leave the model there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    way_out = "CUDA_VISIBLE_DEVICES=1"
    model = adapted_model("llama")
    monkeypatch.setattr(type(model), "device", torch.device("cuda:1"), raising=False)
    with pytest.raises(ValueError, match=way_out):
        tlora.train(model, token_rows(8), **QUIET)
    with pytest.raises(ValueError, match=way_out):
        tlora.compare("lora", "none", "no-model", store=tmp_path / "store.jsonl", device="cuda:1")
    refused = invoke(f"run --model no-model --task none -o {tmp_path / 'out'} --device cuda:1")
    assert way_out in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("card", "rank", "visible", "says"),
    [
        ("cuda", "1", None, None),
        ("cuda:1", "1", None, None),
        ("cuda:0", "-1", None, None),
        ("cpu", "1", None, None),
        ("cuda:1", None, "2,3", "CUDA_VISIBLE_DEVICES=3"),
        ("cuda:0", "1", None, "this process trains on cuda:1: leave the device out"),
    ],
)
def test_the_card_of_a_process_is_taken(
    card: str, rank: str | None, visible: str | None, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", rank), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says) if says else contextlib.nullcontext():
        check_card(torch.device(card))
