"""The workbench of a mixture: the experts of a parameter are one cell, whose rank each of them pays for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.adapted import token_rows
from tests.helpers.experts import routed, tiny_mixture
from tests.helpers.models import tiny_batch
from tests.helpers.reported import page_data
from viz.widgets.panels.allocation import compared_with_lora
from viz.widgets.results import Results

DOWN = [f"model.layers.{layer}.mlp.experts.down_proj" for layer in (0, 1)]


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


def test_curves_of_a_parameter_are_the_means_of_its_experts_with_their_range() -> None:
    made, most = directions(), 4
    it = viz.Workbench(routed(), made, rank=2)
    about = it.widget.about
    (found,) = [one for one in about["spectra"] if one["label"] == "fisher"]
    tab = next(tab for tab in about["tabs"] if tab["name"] == "variance")
    for name in DOWN:
        sums = np.array(
            [made.row_variance[f"{name}[{n}]"][:most].cumsum(0).numpy() / made.traces[f"{name}[{n}]"] for n in range(4)]
        )
        k = it.names.index(name)
        curves, mine = found["curves"]["variance"], found["index"][k]
        np.testing.assert_allclose(curves["sums"][mine], sums.mean(0), rtol=1e-3)
        np.testing.assert_allclose(curves["ends"][mine], [sums.min(0), sums.max(0)], rtol=1e-2)
        np.testing.assert_allclose(tab["curves"][k], sums.mean(0), rtol=1e-3)
    attention = next(k for k, name in enumerate(it.names) if name.endswith("q_proj"))
    assert found["curves"]["variance"]["ends"][found["index"][attention]] == []


def test_an_expert_without_tokens_is_no_part_of_the_mean() -> None:
    calibration = routed(experts=16)
    spectrum = calibration.spectrum()
    it = viz.Workbench(calibration, spectrum=spectrum, rank=2)
    tab = next(tab for tab in it.widget.about["tabs"] if tab["name"] == "effective")
    for name in DOWN:
        ranks = [spectrum.effective_rank[f"{name}[{n}]"] for n in range(16)]
        assert 0 in ranks
        assert tab["values"][it.names.index(name)] == pytest.approx(np.mean([r for r in ranks if r]), rel=1e-2)


def test_what_a_parameter_captures_is_of_the_gradient_of_all_its_experts() -> None:
    batch = tiny_batch("llama", lengths=(5, 8), seed=1)
    kinds = {"fisher": directions()}
    capture = tlora.gradient_capture(tiny_mixture(), [batch], kinds, ranks=(1, 4), resamples=10, progress=False)
    it = viz.Workbench(routed(), directions(), capture=capture, rank=2)
    tab = next(tab for tab in it.widget.about["tabs"] if tab["name"] == "captured")
    columns = [capture.names.index(f"{DOWN[1]}[{n}]") for n in range(4)]
    shares = capture.captured[:, columns, 0].double().sum((0, 1)) / capture.total[:, columns].double().sum()
    shown = tab["curves"][it.names.index(DOWN[1])]
    assert [shown[0], shown[3]] == pytest.approx(shares.tolist(), rel=1e-3)


def test_overlaps_of_a_parameter_are_the_means_of_its_experts() -> None:
    other = tlora.task_subspaces(tiny_mixture(), routed(), max_rank=4, kind="random", progress=False)
    it = viz.Workbench(routed(), directions(), other=other, rank=2)
    tab = next(tab for tab in it.widget.about["tabs"] if tab["name"] == "overlap")
    overlaps = [it.alignments[0].overlaps[f"{DOWN[0]}[{n}]"].tolist() for n in range(4)]
    np.testing.assert_allclose(tab["curves"][it.names.index(DOWN[0])], np.mean(overlaps, 0), rtol=1e-2)


@pytest.mark.parametrize("options", [{"by": "score"}, {"by": "captured"}])
def test_experts_with_ranks_of_their_own_follow_the_map(options: dict[str, Any], tmp_path: Path) -> None:
    it = viz.Workbench(routed(), directions(), rank=2, rank_by_expert=True, **options)
    plain = viz.Workbench(routed(), directions(), rank=2, **options)
    assert it.allocation.ranks == plain.allocation.ranks
    assert "experts" not in plain.widget.current
    for _ in range(2):
        ranks, shown = it.allocation.expert_ranks, it.widget.current
        assert [shown["experts"][it.names.index(name)] for name in ranks] == list(ranks.values())
        assert shown["stored"]["ranks"] == [it.allocation.stored_ranks[name] for name in it.names]
        made = eval(it.code(), {"tlora": tlora, "calibration": routed(), "subspaces": directions()})
        assert made.expert_ranks == ranks
        again = viz.Workbench.load(it.save(tmp_path / "session"))
        assert again.allocation.expert_ranks == ranks
        page = page_data(it.page(tmp_path / "page.html"))["current"]
        assert (page["experts"], page["stored"]) == (shown["experts"], shown["stored"])
        it.set_rank(DOWN[0], 3)
    assert sum(it.allocation.expert_ranks[DOWN[0]]) == 3 * 4
    results = Results(allocation=it.allocation)
    assert viz.Workbench.from_results(results).allocation.expert_ranks == it.allocation.expert_ranks
    it.keep()
    it.set(rank_by_expert=False)
    assert it.allocation.ranks == it.kept.ranks
    assert it.arms == {"kept": it.kept, "new": it.allocation}


def test_a_run_is_that_of_the_allocation_whose_experts_have_their_own_ranks() -> None:
    model = tiny_mixture()
    it = viz.Workbench(routed(), directions(), rank=2, rank_by_expert=True, min_rank=0)
    adapted = tlora.attach(model, it.plan)
    run = tlora.train(adapted, token_rows(2), max_steps=2, progress=False)
    shown = viz.Workbench.from_results(Results(sensitivity=routed().sensitivity, allocation=it.allocation, run=run))
    assert shown.widget.about["run"] == shown.widget.current["stored"]["ranks"] != shown.widget.current["ranks"]
    text = str(shown.widget.about["panels"])
    assert "outside the allocation" not in text
    assert "zero for good" in str(compared_with_lora(it.allocation))
