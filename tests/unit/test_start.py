"""How A began, told from the adapter alone: what was attached is what is recognised."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from peft import PeftModel

import tlora
from tests.adapted import adapted_model, quick_collections, token_rows  # noqa: F401
from tests.helpers import tiny_batch, tiny_model
from tlora.adapters.lora_layers import lora_modules
from tlora.training.train import start_of_a


@pytest.fixture(scope="module")
def made() -> Any:
    """A model with its subspaces and a plan."""
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    return model, subspaces, tlora.allocate(calibration.sensitivity, rank=3, max_rank=8)


def start(model: PeftModel) -> str | None:
    return start_of_a(lora_modules(model).values())


@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("rows", ["orthonormal", "variance", "random"])
def test_what_was_attached_is_recognised(made: Any, rows: str, freeze_a: bool) -> None:
    model, subspaces, plan = made
    drawn = rows == "random"
    given = {"freeze_a": freeze_a} | ({} if drawn else {"rows": rows})
    adapted = tlora.attach(model, None if drawn else subspaces, plan, replace=True, **given)
    assert start(adapted) == rows
    assert start(adapted.bfloat16()) == rows
    adapted.float()


def test_ranks_of_one_show_their_length_alone(made: Any) -> None:
    model, subspaces, plan = made
    plan = dataclasses.replace(plan, ranks=dict.fromkeys(plan.ranks, 1))
    assert start(tlora.attach(model, subspaces, plan, replace=True)) == "orthonormal"
    assert start(tlora.attach(model, subspaces, plan, rows="variance", replace=True)) is None
    assert start(tlora.attach(model, None, plan, replace=True)) is None


def test_an_adapter_that_was_trained_before_does_not_show_how_it_began() -> None:
    model = adapted_model()
    assert start(model) == "random"
    first = tlora.train(model, token_rows(), learning_rate=1e-2, progress=False)
    again = tlora.train(model, token_rows(), learning_rate=1e-2, progress=False)
    assert [run.meta.recipe["start_of_a"] for run in (first, again)] == ["random", None]
    assert ["from a B that was not zero" in repr(run) for run in (first, again)] == [False, True]
    assert start_of_a([]) is None


def test_a_row_of_zeros_is_of_no_subspace() -> None:
    model = adapted_model()
    with torch.no_grad():
        for module in lora_modules(model).values():
            module.a.copy_(torch.eye(*module.a.shape))
            module.a[0] = 0
    assert start(model) == "random"
