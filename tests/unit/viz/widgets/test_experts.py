"""The workbench of a mixture: the experts of a parameter are one cell, whose rank each of them pays for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tlora
import viz
from tests.helpers.experts import tiny_mixture
from tests.helpers.models import tiny_batch

DOWN = [f"model.layers.{layer}.mlp.experts.down_proj" for layer in (0, 1)]


@cache
def routed() -> Any:
    """Three samples of attention and experts."""
    batch = tiny_batch("llama", lengths=(7, 4, 9))
    select = ["attention", "experts"]
    return tlora.calibrate(tiny_mixture(), [batch], target_modules=select, fisher=True, progress=False)


@cache
def directions() -> Any:
    """Of each expert."""
    return tlora.task_subspaces(tiny_mixture(), routed(), max_rank=4, kind="fisher", progress=False)


def spent(it: viz.Workbench) -> int:
    """Ranks, of which each expert has its own."""
    return sum(rank * (4 if "experts" in name else 1) for name, rank in it.allocation.ranks.items())


@pytest.mark.parametrize("options", [{}, {"by": "captured"}])
def test_a_parameter_is_one_cell_and_its_experts_share_the_budget(options: dict[str, Any], tmp_path: Path) -> None:
    it = viz.Workbench(routed(), directions(), rank=2, **options)
    assert [name for name in it.names if name.endswith("down_proj")] == DOWN
    assert len(it.names) == 2 * (4 + 2)
    budget = 2 * 2 * (4 + 2 * 4)
    assert spent(it) == budget
    it.set_rank(DOWN, 1)
    assert it.allocation.ranks[DOWN[0]] == it.allocation.ranks[DOWN[1]] == 1
    assert spent(it) == budget
    made = eval(it.code(), {"tlora": tlora, "calibration": routed(), "subspaces": directions()})
    assert made.ranks == it.allocation.ranks
    again = viz.Workbench.load(it.save(tmp_path / "session"))
    assert again.allocation.ranks == it.allocation.ranks
    assert again.code() == it.code()


def test_scores_of_a_parameter_are_the_mean_of_its_experts() -> None:
    it = viz.Workbench(routed(), rank=2)
    scores = routed().sensitivity.scores
    for name in DOWN:
        expected = sum(scores[f"{name}[{expert}]"] for expert in range(4)) / 4
        assert it.sensitivity.scores[name] == pytest.approx(expected)
