"""TrainingRun: the saved folder as PEFT sees it, the round trip, and whether the rank was used."""

import dataclasses
import json
import random
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
from tests.helpers.adapted import adapted_model
from tests.helpers.disks import kills
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.results import STORED, same
from tests.helpers.updates import ARGUMENTS, run_with_singular_values, trained
from tlora.tasks.load import load_task
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


def test_a_run_knows_what_its_metrics_are_of(tmp_path: Path, run: TrainingRun) -> None:
    assert run.evaluated_on == "train"
    for sizes, split in (((4, 3), "test"), ((4, 0), "validation"), ((0, 0), "")):
        validation, test = sizes
        task = load_task(Dataset.from_list(PAIRS), tiny_tokenizer(), train=24, validation=validation, test=test)
        held_out = train(adapted_model(), task, **ARGUMENTS)
        assert held_out.evaluated_on == split
        assert bool(held_out.before) == bool(split)
        assert held_out.meta.recipe["evaluated_samples"] == {"test": test, "validation": validation, "": 0}[split]
        assert TrainingRun.load(held_out.save(tmp_path / "adapter")).evaluated_on == split


def test_singular_values_of_the_update(run: TrainingRun) -> None:
    for name, sigma in run.singular_values().items():
        a, b = (run.adapter[f"base_model.model.{name}.lora_{part}.weight"].double().numpy() for part in "AB")
        expected = np.linalg.svd(run.scalings[name] * b @ a, compute_uv=False)[: run.ranks[name]]
        np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-4, atol=1e-7)


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


@pytest.mark.posix
def test_a_save_that_is_killed_leaves_an_adapter_or_none(tmp_path: Path, run: TrainingRun) -> None:
    """Where one was: the earlier one or the new one, or a folder that no reader takes for an adapter."""
    folder, seen = tmp_path / "adapter", set()
    old, other = run_with_singular_values([1.0, 2.0]), run_with_singular_values([3.0])

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


@pytest.mark.posix
@pytest.mark.parametrize("start", ["untrained", "unfinished"])
def test_a_save_that_is_killed_can_be_made_again(start: str, tmp_path: Path, run: TrainingRun) -> None:
    folder = tmp_path / "adapter"

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if start == "untrained":
            tlora.save_initial(adapted_model(), folder)
        else:
            (folder / "tlora" / "unfinished").mkdir(parents=True)
            (folder / "tlora" / "unfinished" / "run.yaml").touch()

    for _ in kills(lambda: run.save(folder), begin):
        run.save(folder)
        assert same(TrainingRun.load(folder), run)
        assert not list(folder.rglob(".tlora-*"))


def test_a_run_is_read_by_its_folder_or_by_the_file_in_it(tmp_path: Path, run: TrainingRun) -> None:
    folder = run.save(tmp_path / "adapter")
    for path in (folder, folder / "tlora" / "run", folder / "tlora" / "run.safetensors"):
        assert same(tlora.load_result(path).adapter, run.adapter)
    alone = shutil.copy(folder / "tlora" / "run.safetensors", tmp_path / "copied.safetensors")
    with pytest.raises(FileNotFoundError, match="no adapter"):
        tlora.load_result(alone)


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


def test_format_7_with_a_flipped_bit_in_what_names_its_files_is_refused(tmp_path: Path) -> None:
    """That format has no checksum; neither the names nor the digests of the adapter's files may get lost."""
    folder = shutil.copytree(STORED / "format_7" / "TrainingRun", tmp_path / "adapter")
    file = folder / "tlora" / "run.safetensors"
    whole = file.read_bytes()
    first, last = whole.index(b"adapter_config.json"), whole.index(b"}", whole.index(b"adapter_model.safetensors"))
    for place in random.Random(0).sample(range(8 * first, 8 * last), 200):
        blob = bytearray(whole)
        blob[place // 8] ^= 1 << place % 8
        file.write_bytes(blob)
        for read in (tlora.load_result, tlora.inspect):
            with pytest.raises(ValueError, match=r"safetensors|config\.json"):
                read(folder)
    file.write_bytes(whole)
    assert tlora.load_result(folder).adapter


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


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_a_run_whose_table_was_sorted_is_read_again_with_each_module_in_its_row(tmp_path: Path) -> None:
    run = dataclasses.replace(trained()[1])
    run.module_history.sort_values("update_norm", ascending=False, inplace=True)
    run.module_history["log"] = np.log1p(run.module_history["update_norm"])
    kept = run.module_history.set_index(["module", "step"]).sort_index()
    again = TrainingRun.load(run.save(tmp_path / "run")).module_history
    assert again.set_index(["module", "step"]).sort_index().equals(kept)
