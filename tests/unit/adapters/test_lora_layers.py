"""An adapter's two files are checked before anything is made of them: what a config asks for would be allocated."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tlora
from tests.helpers.models import tiny_model
from tests.helpers.updates import made_of, trained
from tlora.training.run import TrainingRun

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by PEFT, with another rank where the pattern says."""
    folder = tmp_path_factory.mktemp("adapter") / "whole"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    get_peft_model(tiny_model("llama"), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def test_an_update_that_overflows_has_no_singular_values(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    save_file({key: torch.full_like(t, 1e30) for key, t in tensors.items()}, folder / ADAPTER)
    with pytest.raises(ValueError, match=r"the update of .*q_proj is not finite in float32"):
        tlora.inspect(folder)


@pytest.fixture(scope="module")
def run() -> TrainingRun:
    return trained()[1]


@pytest.mark.parametrize(
    ("sigma", "energy", "used"),
    [
        ([3.0, 3.0, 3.0, 3.0], 0.99, 4),
        ([3.0, 3.0, 3.0, 3.0], 0.5, 2),
        ([10.0, 0.1, 0.1, 0.1], 0.99, 1),
        ([10.0, 5.0, 0.1, 0.1], 0.99, 2),
        ([2.0, 1.0, 1.0, 1.0], 1.0, 4),
        ([2.0, 1.0, 0.0, 0.0], 1.0, 2),
        ([0.0, 0.0, 0.0, 0.0], 0.99, 0),
    ],
)
def test_rank_use_of_constructed_updates(sigma: list[float], energy: float, used: int) -> None:
    (row,) = made_of(sigma).rank_use(energy).to_dict("records")
    squares = np.square(sigma)
    assert (row["rank"], row["used_rank"], row["use"]) == (4, used, used / 4)
    assert row["update_norm"] == pytest.approx(np.sqrt(squares.sum()), rel=1e-4)
    effective = squares.sum() ** 2 / (squares**2).sum() if squares.any() else 0
    assert row["effective_rank"] == pytest.approx(effective, rel=1e-3)


def test_rank_beyond_the_matrix_has_no_more_directions() -> None:
    run = made_of([1.0] * 4, d_out=12, d_in=10)
    wide = dataclasses.replace(
        run,
        ranks={"m": 14},
        adapter={name: torch.ones(14, 10) if "A" in name else torch.ones(12, 14) for name in run.adapter},
    )
    assert wide.singular_values()["m"].shape == (14,)
    assert wide.rank_use()["used_rank"].item() == 1


@pytest.mark.parametrize("energy", [0.0, 1.1, -1])
def test_rank_use_refuses_a_share_that_is_none(run: TrainingRun, energy: float) -> None:
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        run.rank_use(energy)


def other_kind(kind: type[peft.PeftConfig] = peft.VeraConfig, **config: Any) -> peft.PeftModel:
    return peft.get_peft_model(tiny_model("llama"), kind(target_modules=["q_proj"], task_type="CAUSAL_LM", **config))


def test_adapters_of_other_kinds_are_called_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"merge is for LoRA, and this adapter is LN_TUNING: PEFT merges it"):
        tlora.merge(other_kind(peft.LNTuningConfig))
    with pytest.raises(ValueError, match="an adapter of the kind VERA, and export is for LoRA"):
        tlora.export(other_kind(), tmp_path / "there")
