"""TrainingRun: the saved folder as PEFT sees it, the round trip, and whether the rank was used."""

import dataclasses
import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import PeftModel

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.disks import kills
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.results import same
from tests.helpers.updates import ARGUMENTS, run_with_singular_values, trained
from tlora.tasks.load import load_task
from tlora.training.callbacks import ModuleRecorder
from tlora.training.run import TrainingRun, history_frame
from tlora.training.train import train


@pytest.fixture(scope="module")
def run() -> TrainingRun:
    return trained()[1]


def load_with_peft(family: str, folder: Path, **options: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
        return PeftModel.from_pretrained(tiny_model(family), str(folder), **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_peft_alone_finds_the_same_model(tmp_path: Path, family: str) -> None:
    model, run = trained(family)
    loaded = load_with_peft(family, run.save(tmp_path / "adapter"))
    batch = tiny_batch(family)
    with torch.no_grad():
        expected, found = model(**batch).logits, loaded(**batch).logits
        base = tiny_model(family)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - base).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_files_are_those_that_peft_writes(tmp_path: Path, family: str) -> None:
    model, run = trained(family)
    run.save(tmp_path / "ours")
    model.save_pretrained(str(tmp_path / "theirs"))
    name = "adapter_model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    for config in (ours, theirs):
        config["target_modules"] = sorted(config["target_modules"])
        config.pop("base_model_name_or_path")
    assert ours == theirs


def test_trained_on_only_b_changes(tmp_path: Path) -> None:
    _, run = trained()
    loaded = load_with_peft("llama", run.save(tmp_path / "adapter"), is_trainable=True)
    for name, parameter in loaded.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    again = train(loaded, token_rows(seed=5), **ARGUMENTS)
    for name, tensor in run.adapter.items():
        assert torch.equal(tensor, again.adapter[name]) == ("lora_A" in name), name


def test_round_trip(tmp_path: Path, run: TrainingRun) -> None:
    again = TrainingRun.load(run.save(tmp_path / "adapter"))
    pd.testing.assert_frame_equal(again.history, run.history)
    pd.testing.assert_frame_equal(again.module_history, run.module_history)
    assert again.adapter.keys() == run.adapter.keys()
    assert all(torch.equal(tensor, again.adapter[name]) for name, tensor in run.adapter.items())
    for field in dataclasses.fields(TrainingRun):
        if field.name not in ("history", "module_history", "adapter", "fingerprints"):
            assert getattr(again, field.name) == getattr(run, field.name), field.name
    assert list(run.fingerprints) == list(again.fingerprints) == list(run.ranks)
    assert all(t.equal(again.fingerprints[name]) for name, t in run.fingerprints.items())
    assert run.rank_use().equals(again.rank_use())


def test_what_a_run_says(run: TrainingRun) -> None:
    assert list(run.to_frame().columns) == list(run.columns)
    assert list(run.module_history.columns) == list(run.module_columns)
    assert list(run.rank_use().columns) == list(run.rank_columns)
    assert repr(run).startswith("TrainingRun(6 steps in ")
    assert "4 modules, 448 trained parameters" in repr(run)
    assert len(repr(run)) < 400
    assert "interrupted" in repr(dataclasses.replace(run, interrupted=True))
    assert "diverged" in repr(dataclasses.replace(run, diverged=True))
    assert repr(run).replace(">", "&gt;") in run._repr_html_()
    assert run.meta.samples == 16
    assert run.meta.recipe["learning_rate"] == 1e-2
    assert all(t.device.type == "cpu" and not t.requires_grad for t in run.adapter.values())


def test_a_run_knows_what_its_metrics_are_of(tmp_path: Path, run: TrainingRun) -> None:
    assert run.evaluated_on == "train"
    for sizes, split in (((4, 3), "test"), ((4, 0), "validation"), ((0, 0), "")):
        validation, test = sizes
        task = load_task(Dataset.from_list(PAIRS), tiny_tokenizer(), train=24, validation=validation, test=test)
        held_out = train(adapted_model(), task, **ARGUMENTS)
        assert held_out.evaluated_on == split
        assert bool(held_out.before) == bool(split)
        assert TrainingRun.load(held_out.save(tmp_path / "adapter")).evaluated_on == split


def test_ranks_and_scalings_are_those_of_the_model(run: TrainingRun) -> None:
    assert run.ranks == {
        f"model.layers.{i}.{name}": rank
        for i, rank in ((0, 4), (1, 3))
        for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert list(run.scalings.values()) == [1.5, 1.5, 2.5, 2.5]


def test_singular_values_of_the_update(run: TrainingRun) -> None:
    for name, sigma in run.singular_values().items():
        a, b = (run.adapter[f"base_model.model.{name}.lora_{part}.weight"].double().numpy() for part in "AB")
        expected = np.linalg.svd(run.scalings[name] * b @ a, compute_uv=False)[: run.ranks[name]]
        np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_an_empty_run_can_be_saved_and_shown(tmp_path: Path) -> None:
    empty = run_with_singular_values([1.0, 2.0])
    again = TrainingRun.load(empty.save(tmp_path / "adapter"))
    assert len(again.history) == len(again.module_history) == 0
    assert repr(again) == "TrainingRun(0 steps in 1 s, 1 modules, 24 trained parameters)"
    assert "TrainingRun" in again._repr_html_()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_replaces_an_adapter_and_nothing_else(tmp_path: Path, run: TrainingRun) -> None:
    new = content(run.save(tmp_path / "new"))
    mine = {"model.safetensors": b"base", "tlora/calibration.safetensors": b"{}", "checkpoint-2/notes.txt": b"text"}
    folder = tmp_path / "adapter"
    for name, blob in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)
    for one in (run_with_singular_values([1.0, 2.0]), run):
        one.save(folder)
        assert same(TrainingRun.load(folder).adapter, one.adapter)
    assert content(folder) == mine | new


def test_a_save_that_is_killed_leaves_an_adapter_or_none(tmp_path: Path, run: TrainingRun) -> None:
    """Where one was: the earlier one or the new one, or a folder that no reader takes for an adapter."""
    folder, old, other, seen = (
        tmp_path / "adapter",
        run_with_singular_values([1.0, 2.0]),
        run_with_singular_values([3.0]),
        set(),
    )

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        old.save(folder)

    for _ in kills(lambda: run.save(folder), begin):
        if (folder / "adapter_config.json").exists():
            found = TrainingRun.load(folder)
            assert same(found.adapter, old.adapter) or same(found, run)
            seen.add(len(found.ranks))
        else:
            for read in (TrainingRun.load, tlora.inspect):
                with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json there \(a copy or a save"):
                    read(folder)
            seen.add(0)
        other.save(folder)
        assert same(TrainingRun.load(folder).adapter, other.adapter)
        assert len(content(folder)) == 3
    assert len(seen) == 3


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_old_adapter(tmp_path: Path, run: TrainingRun, monkeypatch: Any, writes: int) -> None:
    folder = run_with_singular_values([1.0, 2.0]).save(tmp_path / "adapter")
    old = content(folder)
    left = iter(range(writes))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(folder)
    assert content(folder) == old
    assert list(tmp_path.iterdir()) == [folder]


def test_load_refuses_an_adapter_that_the_run_did_not_train(tmp_path: Path, run: TrainingRun) -> None:
    folder = run.save(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    blob = file.read_bytes()
    file.write_bytes(blob[:-4] + b"else")
    with pytest.raises(ValueError, match="is not what this run trained"):
        TrainingRun.load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors there"):
        TrainingRun.load(folder)
    file.write_bytes(blob)
    shutil.rmtree(folder / "tlora")
    with pytest.raises(FileNotFoundError, match="no result at"):
        TrainingRun.load(folder)


def test_history_brings_together_what_was_logged_apart() -> None:
    log = [
        {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 1},
        {"loss": 1.0, "grad_norm": 0.5, "learning_rate": 0.2, "epoch": 1.0, "step": 2},
        {"eval_loss": 1.5, "eval_runtime": 3.0, "epoch": 1.0, "step": 2},
        {"train_runtime": 9.0, "train_loss": 1.5, "epoch": 1.0, "step": 2},
    ]
    expected = pd.DataFrame(
        {
            "step": [1, 2],
            "epoch": [0.5, 1.0],
            "loss": [2.0, 1.0],
            "learning_rate": [0.1, 0.2],
            "grad_norm": [1.0, 0.5],
            "eval_loss": [np.nan, 1.5],
        }
    )
    pd.testing.assert_frame_equal(history_frame(log), expected)


QUIET: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "progress": False}


def recorded() -> tlora.TrainingRun:
    return tlora.train(adapted_model(), token_rows(8), callbacks=ModuleRecorder(every=1), **QUIET)


IN_PLACE = pytest.mark.filterwarnings("ignore:The inplace keyword")  # which pandas goes on having for a while


@IN_PLACE
@pytest.mark.parametrize("column", ["update_norm", "module"])
def test_a_run_whose_table_was_sorted_is_read_again_with_each_module_in_its_row(column: str, tmp_path: Path) -> None:
    run = recorded()
    run.module_history.sort_values(column, ascending=False, inplace=True)
    run.module_history["log"] = np.log1p(run.module_history["update_norm"])
    kept = run.module_history.set_index(["module", "step"]).sort_index()
    run.save(tmp_path / "run")
    again = tlora.TrainingRun.load(tmp_path / "run").module_history.set_index(["module", "step"]).sort_index()
    assert again.equals(kept)
