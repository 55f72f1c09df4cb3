"""Checkpoints: a resumed training is the undisturbed one, another is refused, and a full disk ends none."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

import viz
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_model
from tests.helpers.trainings import StopAfter, two_adapters
from tlora.training import checkpoints
from tlora.training.checkpoints import is_complete
from tlora.training.train import train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False, "evaluation_limit": 0}


def begin(folder: Path, model: PeftModel, rows: Any = None, **more: Any) -> dict[str, Any]:
    """Train for five of eight steps; the options to resume with."""
    options = QUICK | {"epochs": 2, "save_steps": 2, "output_dir": folder} | more
    with pytest.warns(UserWarning, match="5 of 8 steps"):
        train(model, rows or token_rows(), callbacks=StopAfter(5), **options)
    return options


@pytest.mark.parametrize("kind", [peft.VeraConfig, peft.IA3Config])
def test_adapters_of_other_kinds_are_resumed(kind: type[peft.PeftConfig], tmp_path: Path) -> None:
    def fresh() -> PeftModel:
        more = {"feedforward_modules": []} if kind is peft.IA3Config else {}
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model("llama"), kind(target_modules=["q_proj"], task_type="CAUSAL_LM", **more))

    options = QUICK | {"save_steps": 2, "max_steps": 4}
    whole = train(fresh(), token_rows(16), output_dir=tmp_path / "whole", **options)
    place = tmp_path / "whole" / "checkpoint-2"
    again = train(fresh(), token_rows(16), output_dir=tmp_path / "b", resume=place, **options)
    assert again.history.equals(whole.history)


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_an_adapter_of_any_name_is_resumed(keep: bool, tmp_path: Path) -> None:
    options = begin(tmp_path, two_adapters(keep))
    resumed = train(two_adapters(keep), token_rows(), resume=True, **options)
    whole = train(two_adapters(keep), token_rows(), **options | {"output_dir": tmp_path / "whole"})
    assert all(torch.equal(tensor, whole.adapter[name]) for name, tensor in resumed.adapter.items())


@pytest.mark.parametrize("declare_frozen", [True, False])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, declare_frozen: bool) -> None:
    def fresh() -> PeftModel:
        return adapted_model(declare_frozen=declare_frozen)

    options = begin(tmp_path / "cut", fresh())
    whole = train(fresh(), token_rows(), **options | {"output_dir": tmp_path / "whole"})
    model = fresh()
    resumed = train(model, token_rows(), resume=True, **options)
    assert resumed.history.equals(whole.history)
    assert resumed.module_history.equals(whole.module_history)
    assert resumed.adapter.keys() == whole.adapter.keys()
    assert all(torch.equal(tensor, resumed.adapter[name]) for name, tensor in whole.adapter.items())
    initial = fresh().state_dict()
    assert all(torch.equal(initial[name], model.state_dict()[name]) for name in initial if "lora_A" in name)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


def test_a_resumed_run_says_nothing_of_our_own_settings(tmp_path: Path) -> None:
    """The Trainer has a file for them, where shares of the steps are numbers."""
    handler, heard = logging.Handler(logging.WARNING), list[str]()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        for options in ({"max_steps": 2}, {"max_steps": 4, "resume": True}):
            train(adapted_model(), token_rows(), output_dir=tmp_path, **(QUICK | options))
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert heard == []


def test_a_resumed_run_counts_the_seconds_until_its_checkpoint(tmp_path: Path) -> None:
    options = begin(tmp_path, adapted_model())
    record = tmp_path / "checkpoint-4" / "arguments.json"
    values = json.loads(record.read_text())
    assert 0 < values["seconds"] < 100
    record.write_text(json.dumps(values | {"seconds": 1000.0}))
    assert 1000 < train(adapted_model(), token_rows(), resume=True, **options).seconds < 1100
    assert json.loads((tmp_path / "checkpoint-8" / "arguments.json").read_text())["seconds"] > 1000


def test_refusals_of_another_training(tmp_path: Path) -> None:
    options = begin(tmp_path, adapted_model())
    for change, words in (
        ({"rows": token_rows(seed=2)}, "checkpoint-4 .*samples"),
        ({"rows": token_rows(8)}, "training samples=16, not 8"),
        ({"rows": token_rows().map(lambda row: {"more": 1})}, "other training samples"),
        ({"model": adapted_model(seed=5)}, "checkpoint-4 is of another model"),
        ({"model": adapted_model(r=5)}, r"down_proj.lora_A.weight has shape \(4, 48\)"),
        ({"model": adapted_model(lora_alpha=80)}, "other scalings"),
        ({"model": adapted_model(alpha_pattern={r"^.*\.1\..*$": 75})}, "other scalings"),
        ({"model": adapted_model(use_rslora=True)}, "other scalings"),
        ({"learning_rate": 1e-4}, "learning_rate=0.01, not 0.0001"),
        ({"seed": 7}, "seed=0, not 7"),
        ({"batch_size": 2}, "samples a step=4, not 2"),
        ({"optim": "sgd"}, "optim"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"resume": False}, r"checkpoint-4 of an earlier training: pass resume='.*checkpoint-4'"),
        ({"output_dir": None}, "output_dir"),
    ):
        arguments = {"model": adapted_model(), "task": token_rows(), "resume": True} | options | change
        arguments["task"] = arguments.pop("rows", arguments["task"])
        with pytest.raises(ValueError, match=words):
            train(**arguments)
    alone = begin(tmp_path / "alone", adapted_model(), save_only_model=True)
    with pytest.raises(ValueError, match="save_only_model=True"):
        train(adapted_model(), token_rows(), resume=True, **alone)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        train(adapted_model(), token_rows(), resume=True, **options | {"output_dir": tmp_path / "none"})


def test_the_same_training_in_another_form_is_resumed_and_can_be_longer(tmp_path: Path) -> None:
    options = begin(tmp_path, adapted_model())
    options |= {"batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "epochs": 3}
    assert train(adapted_model(), token_rows().with_format("torch"), resume=True, **options).steps == 12


@pytest.mark.parametrize("length", [{"max_steps": np.int64(6)}, {"epochs": 1.5}], ids=["steps", "epochs"])
def test_a_training_that_has_ended_takes_no_further_step(length: dict[str, Any], tmp_path: Path) -> None:
    """Not at the end of an epoch, where the Trainer itself would stop."""
    options = QUICK | {"save_steps": 2, "output_dir": tmp_path} | length
    whole = train(adapted_model(), token_rows(), **options)
    again = train(adapted_model(), token_rows(), resume=True, **options)
    assert (again.steps, again.meta.recipe["steps"], again.interrupted) == (6, [6, 6], False)
    assert all(torch.equal(tensor, again.adapter[name]) for name, tensor in whole.adapter.items())
    with pytest.raises(ValueError, match="checkpoint-6 is after 6 steps, and max_steps=5: pass at least 6"):
        train(adapted_model(), token_rows(), resume=True, **options | {"max_steps": 5})


def test_resume_takes_the_last_whole_checkpoint_or_a_path(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    (tmp_path / "checkpoint-8" / "arguments.json").unlink()  # as a kill before it was written leaves it
    (tmp_path / "checkpoint-6" / "arguments.json").write_text('{"seed": 0, "digest of samp')
    resumed = train(adapted_model(), token_rows(), output_dir=tmp_path, resume=True, **options)
    assert resumed.meta.recipe["resume"].endswith("checkpoint-4")
    assert resumed.history.equals(whole.history)
    assert resumed.module_history.equals(whole.module_history)
    path = tmp_path / "checkpoint-2"
    again = train(adapted_model(), token_rows(), output_dir=tmp_path / "new", resume=path, **options)
    assert again.history.equals(whole.history)
    (path / "arguments.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="checkpoint-2"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, resume=path, **options)
    (tmp_path / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, resume=True, **options)


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    train(adapted_model(), token_rows(8), **QUICK, hub_token="hf_secret").save(tmp_path / "a")
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert "hf_secret" not in str(viz.card(tmp_path / "a"))


def test_a_checkpoint_is_marked_once_all_else_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is written again is not complete meanwhile."""
    options = QUICK | {"max_steps": 4, "save_steps": 2, "output_dir": tmp_path}
    seen: list[tuple[bool, list[str]]] = []

    def flush(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            seen.append((is_complete(folder), sorted(file.name for file in folder.iterdir())))

    monkeypatch.setattr(checkpoints, "flush", flush)
    train(adapted_model(), token_rows(), **options)
    train(adapted_model(), token_rows(), resume=tmp_path / "checkpoint-2", **options)
    files = sorted(file.name for file in (tmp_path / "checkpoint-4").iterdir() if file.name != "arguments.json")
    assert seen == [(False, files)] * 2
    assert is_complete(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "module_history.json", "arguments.json"])
def test_a_checkpoint_that_cannot_be_written_does_not_end_training(tmp_path: Path, name: str) -> None:
    """The disk is full from one file of one checkpoint on: what was trained is the same, and the others are there."""
    options = QUICK | {"epochs": 2, "save_steps": 2, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), **options | {"save_steps": 0.25})
    folder = tmp_path / "full"

    class Full(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            (folder / "checkpoint-4" / name).mkdir(parents=True)  # even root cannot write a file there

    with pytest.warns(UserWarning, match="checkpoint-4 could not be written"):
        run = train(adapted_model(), token_rows(), output_dir=folder, callbacks=Full(), **options)
    assert run.history.equals(whole.history)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert train(adapted_model(), token_rows(), output_dir=folder, resume=True, **options).history.equals(whole.history)


def test_checkpoints_need_a_folder_and_leave_none_behind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(adapted_model(), token_rows(), **QUICK)
    assert list(tmp_path.iterdir()) == []
    model = adapted_model()
    model.peft_config["default"].base_model_name_or_path = "nobody/nothing"  # and no hub is asked for it
    train(model, token_rows(), output_dir=tmp_path / "here", **QUICK)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["checkpoint-3", "checkpoint-4"]
