"""Training in somebody's pipeline: options together, adapters of other kinds, what goes on and what is held."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

import tlora
import viz
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_model
from tests.helpers.trainings import Stop, StopAfter, two_adapters
from tlora.training import checkpoints
from tlora.training.checkpoints import is_complete
from tlora.training.train import train

QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


def other_kind(kind: type[peft.PeftConfig] = peft.VeraConfig, **config: Any) -> peft.PeftModel:
    return peft.get_peft_model(tiny_model("llama"), kind(target_modules=["q_proj"], task_type="CAUSAL_LM", **config))


@pytest.mark.parametrize("kind", [peft.VeraConfig, peft.IA3Config, peft.LoHaConfig, peft.LNTuningConfig])
def test_adapters_of_other_kinds_go_on_too(kind: type[peft.PeftConfig], tmp_path: Path) -> None:
    more = {"feedforward_modules": []} if kind is peft.IA3Config else {}
    options = QUIET | {"save_steps": 2, "max_steps": 4}
    torch.manual_seed(0)
    whole = tlora.train(other_kind(kind, **more), token_rows(16), output_dir=tmp_path / "whole", **options)
    place = tmp_path / "whole" / "checkpoint-2"
    torch.manual_seed(0)
    again = tlora.train(other_kind(kind, **more), token_rows(16), output_dir=tmp_path / "b", resume=place, **options)
    assert again.history.equals(whole.history)


def begun(folder: Path, model: PeftModel, rows: Any = None, **more: Any) -> dict[str, Any]:
    """Train for five of eight steps; the options to go on with."""
    options = QUIET | {"learning_rate": 0.02, "epochs": 2, "save_steps": 2, "output_dir": folder} | more
    with pytest.warns(UserWarning, match="after 5 of 8 steps"):
        tlora.train(model, rows or token_rows(), callbacks=Stop(5), **options)
    return options


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_an_adapter_of_any_name_goes_on(keep: bool, tmp_path: Path) -> None:
    options = begun(tmp_path, two_adapters(keep))
    resumed = tlora.train(two_adapters(keep), token_rows(), resume=True, **options)
    whole = tlora.train(two_adapters(keep), token_rows(), **options | {"output_dir": tmp_path / "whole"})
    assert all(torch.equal(tensor, whole.adapter[name]) for name, tensor in resumed.adapter.items())


def test_a_training_continues_with_its_own_samples_and_base(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model())
    for model, rows, resume, words in (
        (adapted_model(), token_rows(seed=2), True, "checkpoint-4 .*samples"),
        (adapted_model(), token_rows(8), True, "training samples=16, not 8"),
        (adapted_model(seed=5), token_rows(), True, "checkpoint-4 is of another model"),
        (adapted_model(r=5), token_rows(), True, r"down_proj.lora_A.weight has shape \(4, 48\)"),
        (adapted_model(lora_alpha=80), token_rows(), True, "other scalings"),
        (adapted_model(alpha_pattern={r"^.*\.1\..*$": 75}), token_rows(), True, "other scalings"),
        (adapted_model(use_rslora=True), token_rows(), True, "other scalings"),
        (adapted_model(), token_rows(), False, "pass resume="),
    ):
        with pytest.raises(ValueError, match=words):
            tlora.train(model, rows, resume=resume, **options)


def test_the_same_samples_in_another_form_are_the_same(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model())
    assert tlora.train(adapted_model(), token_rows().with_format("torch"), resume=True, **options).steps == 8


def test_checkpoints_that_are_there_are_never_counted_among_new_ones(tmp_path: Path) -> None:
    """The Trainer would remove them, or the new ones, as the oldest."""
    options = begun(tmp_path, adapted_model())
    for mark in tmp_path.glob("checkpoint-*/arguments.json"):
        mark.unlink()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        tlora.train(adapted_model(), token_rows(), resume=True, **options)
    with pytest.raises(ValueError, match=r"pass resume='.*checkpoint-4'"):
        tlora.train(adapted_model(), token_rows(), **options)
    assert tlora.train(adapted_model(), token_rows(), resume=tmp_path / "checkpoint-4", **options).steps == 8
    (tmp_path / "new" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoint-7"):
        tlora.train(adapted_model(), token_rows(), **options | {"output_dir": tmp_path / "new"})


def test_other_inputs_are_other_samples(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model("bert"), rows=token_rows(classes=2))
    more = token_rows(classes=2).map(lambda row: {"token_type_ids": [1] * len(row["input_ids"])})
    with pytest.raises(ValueError, match="other training samples"):
        tlora.train(adapted_model("bert"), more, resume=True, **options)


def test_an_adapter_alone_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model(), save_only_model=True)
    with pytest.raises(ValueError, match="save_only_model=True"):
        tlora.train(adapted_model(), token_rows(), resume=True, **options)


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    run = tlora.train(adapted_model(), token_rows(8), **QUIET, hub_token="hf_secret")
    run.save(tmp_path / "a")
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert "hf_secret" not in str(viz.card(tmp_path / "a"))


def test_the_record_of_a_checkpoint_is_plain(tmp_path: Path) -> None:
    begun(tmp_path, adapted_model())
    record = json.loads((tmp_path / "checkpoint-4" / "arguments.json").read_text())
    assert record["training samples"] == 16
    assert len(record["base"]) == 4


QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


@pytest.mark.parametrize("declare_frozen", [True, False])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, declare_frozen: bool) -> None:
    def fresh() -> PeftModel:
        return adapted_model(declare_frozen=declare_frozen)

    options = QUICK | {"epochs": 2, "save_steps": 3, "evaluation_limit": 0}
    whole = train(fresh(), token_rows(), output_dir=tmp_path / "whole", **options)
    with pytest.warns(UserWarning, match="stopped training after 4 of 8 steps"):
        train(fresh(), token_rows(), output_dir=tmp_path / "cut", callbacks=[StopAfter(4)], **options)
    model = fresh()
    resumed = train(model, token_rows(), output_dir=tmp_path / "cut", resume=True, **options)
    assert resumed.history.equals(whole.history)
    assert resumed.module_history.equals(whole.module_history)
    assert resumed.adapter.keys() == whole.adapter.keys()
    for name, tensor in whole.adapter.items():
        assert torch.equal(tensor, resumed.adapter[name])
    initial = fresh().state_dict()
    frozen = [name for name in initial if "lora_A" in name]
    assert all(torch.equal(initial[name], model.state_dict()[name]) for name in frozen)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


def test_resume_takes_the_last_whole_checkpoint_or_a_path(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
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
    (path / "arguments.json").write_text("")
    with pytest.raises(FileNotFoundError, match="checkpoint-2"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, resume=path, **options)
    (tmp_path / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, resume=True, **options)


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 0}', '{"seed": 0, "digest of samples": "0'])
def test_a_checkpoint_without_a_record_of_ours_is_not_whole(text: str, tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    (tmp_path / "arguments.json").write_text(text)
    assert not is_complete(tmp_path)
    (tmp_path / "arguments.json").write_text('{"digest of samples": "0"}')
    assert is_complete(tmp_path)


def test_a_checkpoint_is_marked_once_all_else_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is written again is not whole meanwhile."""
    options = QUICK | {"max_steps": 4, "save_steps": 2, "evaluation_limit": 0}
    seen: list[tuple[bool, list[str]]] = []

    def flush(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            seen.append((is_complete(folder), sorted(file.name for file in folder.iterdir())))

    monkeypatch.setattr(checkpoints, "flush", flush)
    train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    train(adapted_model(), token_rows(), output_dir=tmp_path, resume=tmp_path / "checkpoint-2", **options)
    assert [whole for whole, _ in seen] == [False, False]
    files = sorted(file.name for file in (tmp_path / "checkpoint-4").iterdir() if file.name != "arguments.json")
    assert [names for _, names in seen] == [files, files]
    assert is_complete(tmp_path / "checkpoint-4")


def test_a_checkpoint_of_another_trainer_has_no_record_and_is_taken_by_its_path(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    (tmp_path / "checkpoint-4" / "arguments.json").unlink()
    path = tmp_path / "checkpoint-4"
    again = train(adapted_model(), token_rows(), output_dir=tmp_path / "new", resume=path, **options)
    assert again.history.equals(whole.history)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "module_history.json", "arguments.json"])
def test_a_checkpoint_that_cannot_be_written_does_not_end_training(tmp_path: Path, name: str) -> None:
    """The disk is full from one file of one checkpoint on: what was trained is the same, and the others are there."""
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path / "whole", **options)
    folder = tmp_path / "full"

    class Full(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            (folder / "checkpoint-4" / name).mkdir(parents=True)  # even root cannot write a file there

    with pytest.warns(UserWarning, match="checkpoint-4 could not be written"):
        run = train(adapted_model(), token_rows(), output_dir=folder, callbacks=Full(), **options)
    assert run.history.equals(whole.history)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert train(adapted_model(), token_rows(), output_dir=folder, resume=True, **options).history.equals(whole.history)


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output_dir"):
        train(adapted_model(), token_rows(), resume=True, **QUICK)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        train(adapted_model(), token_rows(), resume=True, output_dir=tmp_path, **QUICK)


def test_resume_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    options = QUICK | {"save_steps": 2, "evaluation_limit": 0, "learning_rate": 1e-2, "resume": True}
    with pytest.warns(UserWarning, match="stopped training after 2 of"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, callbacks=StopAfter(2), **options | {"resume": False})
    for change, words in (
        ({"learning_rate": 1e-4}, r"learning_rate=0.01, not 0.0001"),
        ({"seed": 7}, "seed=0, not 7"),
        ({"data_seed": 2}, "data_seed"),
        ({"batch_size": 2}, "samples a step=4, not 2"),
        ({"weight_decay": 0.1}, "weight_decay=0.0, not 0.1"),
        ({"lr_scheduler_type": "constant"}, "lr_scheduler_type=cosine, not constant"),
        ({"optim": "sgd"}, "optim"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ):
        with pytest.raises(ValueError, match=words):
            train(adapted_model(), token_rows(), output_dir=tmp_path, **options | change)
    same = {"batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_torch"}
    longer = train(adapted_model(), token_rows(), output_dir=tmp_path, **options | same | {"epochs": 2})
    assert longer.history["step"].max() == 8


def test_checkpoints_need_a_folder_and_leave_none_behind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(adapted_model(), token_rows(), **QUICK)
    assert list(tmp_path.iterdir()) == []
    model = adapted_model()
    model.peft_config["default"].base_model_name_or_path = "nobody/nothing"  # and no hub is asked for it
    train(model, token_rows(), output_dir=tmp_path / "here", **QUICK)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["checkpoint-3", "checkpoint-4"]
