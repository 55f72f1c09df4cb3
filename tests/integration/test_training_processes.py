"""Training by two processes, each with half of every batch: the run of one process."""

from pathlib import Path

import pytest
import torch

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.launched import in_processes
from tests.helpers.results import same
from tests.helpers.trainings import without_dropout

SCRIPT = """
import os, sys, torch
from tests.integration.test_training_processes import trained
torch.set_num_threads(1)
trained(sys.argv[2], f"{sys.argv[1]}/steps", 4).save(f"{sys.argv[1]}/{os.environ['RANK']}")
torch.distributed.destroy_process_group()
"""


def trained(family: str, folder: Path | str, batch_size: int) -> tlora.TrainingRun:
    """Two steps on rows of four to eight tokens; BERT and T5 take the mean over a batch, and know no other process."""
    model = without_dropout(adapted_model(family))
    rows = token_rows(16, classes=2 if family == "bert" else 0)
    if family == "t5":  # answers of different lengths: halves of a batch have different numbers of labels
        rows = rows.map(lambda row, n: {"labels": row["labels"][-1 - n % 3 :]}, with_indices=True)
    options = {"learning_rate": 1e-2, "warmup_steps": 0, "progress": False, "output_dir": folder, "save_steps": 1}
    return tlora.train(model, rows, batch_size=batch_size, **options)


def numbers(run: tlora.TrainingRun, other: tlora.TrainingRun, column: str) -> list[torch.Tensor]:
    return [torch.tensor(each.history[column].to_numpy(), dtype=torch.float64) for each in (run, other)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_two_processes_train_as_one_does(tmp_path: Path, family: str) -> None:
    alone = trained(family, tmp_path / "alone", 8)
    (tmp_path / "script.py").write_text(SCRIPT)
    in_processes(2, tmp_path / "script.py", tmp_path, family)
    run, other = (tlora.TrainingRun.load(tmp_path / rank) for rank in "01")
    assert same(run.adapter, other.adapter)
    for column in ("loss", "learning_rate", "grad_norm"):
        torch.testing.assert_close(*numbers(run, alone, column), rtol=1e-4, atol=0, equal_nan=True)
    for name, tensor in alone.adapter.items():
        torch.testing.assert_close(run.adapter[name], tensor, rtol=1e-3, atol=1e-5)
    assert max(tensor.abs().max() for name, tensor in run.adapter.items() if "lora_B" in name) > 1e-3
    assert [folder.name for folder in sorted((tmp_path / "steps").iterdir())] == ["checkpoint-1", "checkpoint-2"]
