"""Runs whose updates have given singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel

from tests.helpers.adapted import adapted_model, token_rows
from tlora.results import Meta
from tlora.training.run import TrainingRun, history_frame
from tlora.training.train import train

ARGUMENTS: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "progress": False}


def run_with_singular_values(sigma: list[float], d_out: int = 12, d_in: int = 10, scaling: float = 2.0) -> TrainingRun:
    """A run whose one update has the given singular values; neither factor is orthogonal."""
    rng = np.random.default_rng(0)
    rank = len(sigma)
    u, v = (np.linalg.qr(rng.normal(size=(d, rank)))[0] for d in (d_out, d_in))
    mix = rng.normal(size=(rank, rank))
    b = u * np.array(sigma) / scaling @ mix
    a = np.linalg.solve(mix, v.T)
    return TrainingRun(
        history=history_frame([]),
        module_history=pd.DataFrame(columns=list(TrainingRun.module_columns)),
        before={},
        after={},
        ranks={"m": rank},
        scalings={"m": scaling},
        frozen_a=True,
        trainable_parameters=b.size,
        seconds=1.0,
        interrupted=False,
        diverged=False,
        meta=Meta(),
        adapter={
            "base_model.model.m.lora_A.weight": torch.from_numpy(a).float(),
            "base_model.model.m.lora_B.weight": torch.from_numpy(b).float(),
        },
    )


def trained(family: str = "llama") -> tuple[PeftModel, TrainingRun]:
    model = adapted_model(family)
    rows = token_rows(classes=2 if family == "bert" else 0)
    return model, train(model, rows, epochs=3, **ARGUMENTS)
