"""Training by two processes, each with half of every batch: the run of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.launched import in_processes
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import same
from tests.unit.training.test_train import held_out
from tests.unit.training.test_trainer import without_dropout

SCRIPT = """
import os, sys, torch
from tests.integration.test_training_processes import walk
torch.set_num_threads(1)
walk(sys.argv[1], batch_size=2).save(f"{sys.argv[1]}/{os.environ['RANK']}")
torch.distributed.destroy_process_group()
"""


def walk(folder: Path | str, **arguments: Any) -> tlora.TrainingRun:
    """From the calibration to the adapter; rows of four to eight tokens, so that the halves of a batch differ."""
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch(model, seed=seed) for seed in range(4)], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=16, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=4))
    options = {"learning_rate": 1e-2, "epochs": 2, "output_dir": f"{folder}/steps", "progress": False}
    return tlora.train(adapted, held_out(), **options, **arguments)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    alone = walk(tmp_path / "alone", batch_size=4)
    (tmp_path / "script.py").write_text(SCRIPT)
    in_processes(2, tmp_path / "script.py", tmp_path)
    one, other = (tlora.TrainingRun.load(tmp_path / rank) for rank in "01")
    assert same(one.adapter, other.adapter), "both hold the same adapter"
    assert one.history["loss"].notna().sum() == 8
    for run in (one, other):
        assert run.ranks == alone.ranks
        for column in ("loss", "learning_rate", "grad_norm", "eval_loss"):
            torch.testing.assert_close(*numbers(run, alone, column), rtol=1e-5, atol=0, equal_nan=True)
    for name, tensor in alone.adapter.items():
        torch.testing.assert_close(one.adapter[name], tensor, rtol=1e-4, atol=1e-6)
    assert [folder.name for folder in sorted((tmp_path / "steps").iterdir())] == ["checkpoint-6", "checkpoint-8"]
    assert max(tensor.abs().max() for name, tensor in one.adapter.items() if "lora_B" in name) > 1e-3


def numbers(run: tlora.TrainingRun, other: tlora.TrainingRun, column: str) -> list[torch.Tensor]:
    return [torch.tensor(each.history[column].to_numpy(), dtype=torch.float64) for each in (run, other)]


OF_MEANS = """
import os, sys, torch
from tests.integration.test_training_processes import trained
torch.set_num_threads(1)
trained(sys.argv[2], f"{sys.argv[1]}/steps", 4).save(f"{sys.argv[1]}/{os.environ['RANK']}")
torch.distributed.destroy_process_group()
"""


def trained(family: str, folder: Path | str, batch_size: int) -> tlora.TrainingRun:
    """Two steps of a model whose loss is a mean of its batch, which knows nothing of other processes."""
    model = without_dropout(adapted_model(family))
    rows = token_rows(16, classes=2 if family == "bert" else 0)
    if family == "t5":  # answers of other lengths: halves of a batch have other numbers of labels
        rows = rows.map(lambda row, n: {"labels": row["labels"][-1 - n % 3 :]}, with_indices=True)
    options = {"learning_rate": 1e-2, "warmup_steps": 0, "progress": False, "output_dir": folder}
    return tlora.train(model, rows, batch_size=batch_size, **options)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_two_processes_train_on_means_as_one_does(tmp_path: Path, family: str) -> None:
    alone = trained(family, tmp_path / "alone", 8)
    (tmp_path / "script.py").write_text(OF_MEANS)
    in_processes(2, tmp_path / "script.py", tmp_path, family)
    run = tlora.TrainingRun.load(tmp_path / "0")
    for column in ("loss", "grad_norm"):
        torch.testing.assert_close(*numbers(run, alone, column), rtol=1e-4, atol=0, equal_nan=True)
    for name, tensor in alone.adapter.items():
        torch.testing.assert_close(run.adapter[name], tensor, rtol=1e-3, atol=1e-5)
