"""Folders and results for the tests of panels and pages."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch

from tests.helpers import pictured, results
from tlora.results import Result
from tlora.training.run import TrainingRun


def run_of(model: str = "2 layers", steps: int = 20, **changes: Any) -> TrainingRun:
    """A trained adapter with the ranks of that allocation: some modules use all of their rank, some a part of it."""
    allocation, generator = pictured.allocation(model), torch.Generator().manual_seed(1)
    adapter = {}
    for name, rank in allocation.ranks.items():
        d_out, d_in = allocation.shapes[name]
        decay = 2 * torch.rand(1, generator=generator)
        adapter[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, d_in, generator=generator)
        columns = torch.exp(-decay * torch.arange(rank))
        adapter[f"base_model.model.{name}.lora_B.weight"] = torch.randn(d_out, rank, generator=generator) * columns
    values = {
        "ranks": allocation.ranks,
        "scalings": allocation.scalings,
        "trainable_parameters": allocation.trainable_parameters,
        "adapter": adapter,
        "adapter_config": {"base_model_name_or_path": pictured.META.model, "task_type": "CAUSAL_LM"},
        "seconds": 431.2,
        "meta": dataclasses.replace(
            pictured.META,
            seed=7,
            samples=300,
            recipe={
                "evaluated_on": "test",
                "learning_rate": 0.001,
                "epochs": 1,
                "batch_size": 4,
                "evaluation_limit": None,
                "resume": "checkpoint-5",
            },
        ),
    }
    return pictured.training_run(steps, **values | changes)


def results_of(model: str = "2 layers", **changes: Any) -> dict[str, Result]:
    """Sensitivity, spectrum, allocation and run at the size of a model, made by hand, by the names of their folders."""
    return {
        "sensitivity": pictured.sensitivity(model),
        "spectrum": pictured.spectrum(model),
        "allocation": pictured.allocation(model),
        "run": run_of(model, **changes),
    }


def walked() -> dict[str, Result]:
    """All that a real walk over a tiny model leaves."""
    return {
        "sensitivity": results.calibration().sensitivity,
        "spectrum": results.spectrum(),
        "alignment": results.EXAMPLES["Alignment"](),
        "capture": results.capture(),
        "allocation": results.allocation(),
        "run": results.run(),
    }


def save(saved: dict[str, Result], folder: Path) -> Path:
    """The adapter's folder with all the results in their places."""
    saved["run"].save(folder)
    for name, result in saved.items():
        if name != "run":
            result.save(folder / "tlora" / name)
    return folder


def page_data(path: Path) -> dict[str, Any]:
    """The JSON values in the page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r"renderPage\((\{.*\}), document", text)[1])


def panel_names(path: Path) -> list[str]:
    return [panel["name"] for panel in page_data(path)["about"]["panels"]]
