"""Ranks by expert: the experts of a parameter share its ranks by the same rule, and PEFT holds the largest for all."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest

import tlora
from tests.helpers.experts import routed, tiny_mixture
from tests.helpers.models import tiny_batch
from tlora.allocation.allocation import Allocation
from tlora.subspaces.subspaces import Subspaces

EXPERTS = 4
DOWN = "model.layers.0.mlp.experts.down_proj"


@cache
def directions(most: int = 6) -> Subspaces:
    return tlora.task_subspaces(tiny_mixture(), routed(), max_rank=most, kind="fisher", progress=False)


def captured(rank: int = 2, **options) -> Allocation:
    options = {"by": "captured", "subspaces": directions(), "rank_by_expert": True} | options
    return tlora.allocate(routed().sensitivity, rank, **options)


def by_score(rank: int = 3, **options) -> Allocation:
    return tlora.allocate(routed().sensitivity, rank, **{"rank_by_expert": True} | options)


@pytest.mark.parametrize("budget", ["ranks", "parameters"])
@pytest.mark.parametrize("made", [captured, by_score])
def test_the_ranks_of_a_parameter_are_shared_and_the_budget_is_that_without(made, budget):
    mine = made(budget=budget)
    plain = made(budget=budget, rank_by_expert=False)
    assert (mine.ranks, mine.scalings, mine.budget_used) == (plain.ranks, plain.scalings, plain.budget_used)
    assert plain.expert_ranks == {name: [plain.ranks[name]] * EXPERTS for name in mine.expert_ranks}
    assert plain.stored_ranks == plain.ranks
    assert any(len(set(ranks)) > 1 for ranks in mine.expert_ranks.values())
    for name, ranks in mine.expert_ranks.items():
        assert sum(ranks) == EXPERTS * mine.ranks[name]
        assert mine.stored_ranks[name] == max(ranks)


@pytest.mark.parametrize("options", [{}, {"min_rank": 0}, {"max_rank": 3}])
def test_no_other_ranks_of_the_experts_capture_more(options):
    mine = captured(**options)
    low, high = options.get("min_rank", 1), options.get("max_rank", 6)
    table = mine.to_frame().set_index("module")["captured"]
    for name, ranks in mine.expert_ranks.items():
        squares = [directions().singular_values[f"{name}[{e}]"].double().square().numpy() for e in range(EXPERTS)]
        kept = [math.fsum(s[:rank]) for s, rank in zip(squares, ranks, strict=True)]
        best = max(
            sum(s[:rank].sum() for s, rank in zip(squares, other, strict=True))
            for other in itertools.product(range(low, high + 1), repeat=EXPERTS)
            if sum(other) == sum(ranks)
        )
        assert all(low <= rank <= high for rank in ranks)
        assert sum(kept) == pytest.approx(best)
        assert table[name] == pytest.approx(best)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_by_score_ranks_are_in_proportion_to_the_scores_of_the_experts(temperature):
    mine = by_score(6, temperature=temperature, min_rank=0)
    for name, ranks in mine.expert_ranks.items():
        scores = np.array([routed().sensitivity.scores[f"{name}[{e}]"] for e in range(EXPERTS)]) ** temperature
        ideal = sum(ranks) * scores / scores.sum()
        assert (ideal < 20).all(), "no limit is reached"
        assert np.abs(np.array(ranks) - ideal).max() < 1


def test_what_is_trained_and_what_stays_zero_are_counted():
    mine, plain = captured(budget="parameters"), captured(budget="parameters", rank_by_expert=False)
    sizes = {name: (t.d_out, t.d_in) for name, t in mine.targets.items()}
    moving = sum(
        sizes[name][0] * (sum(mine.expert_ranks[name]) if name in mine.expert_ranks else rank)
        for name, rank in mine.ranks.items()
    )
    held = {name: rank * (EXPERTS if name in mine.expert_ranks else 1) for name, rank in mine.stored_ranks.items()}
    assert moving == mine.budget_used == mine.to_frame()["parameters"].sum()
    assert mine.trainable_parameters == sum(rank * sizes[name][0] for name, rank in held.items())
    assert mine.footprint().parameters == sum(rank * sum(sizes[name]) for name, rank in held.items())
    assert mine.zero_parameters == mine.trainable_parameters - moving > 0
    assert f"{mine.zero_parameters:,} of them zero for good" in repr(mine)
    assert plain.zero_parameters == 0
    assert "zero" not in repr(plain)
    table = mine.by_expert()
    assert table.groupby("module", sort=False)["rank"].apply(list).to_dict() == mine.expert_ranks
    assert dict(zip(table["module"], table["stored_rank"], strict=True)).items() <= mine.stored_ranks.items()


@pytest.mark.parametrize("made", [captured, by_score])
def test_edits_and_files_keep_the_experts(made, tmp_path):
    mine = made(budget="ranks")
    edited = mine.edit({DOWN: 1})
    assert edited.expert_ranks[DOWN] == [1] * EXPERTS
    assert edited.edit({DOWN: None}).expert_ranks == mine.expert_ranks
    again = Allocation.load(edited.save(tmp_path / "allocation"))
    assert again.expert_ranks == edited.expert_ranks
    assert again.edit({DOWN: None}).expert_ranks == mine.expert_ranks
    if made is captured:
        assert captured(subspaces=mine).expert_ranks == mine.expert_ranks


def test_excluded_parameters_have_no_expert_ranks():
    mine = captured(exclude_modules="experts.gate_up_proj")
    assert all(name.endswith("down_proj") for name in mine.expert_ranks)
    assert mine.expert_gains.keys() == mine.expert_ranks.keys()


def test_what_lacks_experts_is_refused():
    dense = tlora.calibrate(tiny_mixture(), [tiny_batch("llama")], target_modules="attention", progress=False)
    model, batch = tiny_mixture(), tiny_batch("llama")
    refusals = [
        (lambda: tlora.allocate(dense.sensitivity, 2, rank_by_expert=True), "no effect without experts"),
        (lambda: captured(subspaces=captured(rank_by_expert=False)), "this allocation"),
        (
            lambda: tlora.prepare(model, [batch], _recipe(), 2, progress=False),
            "no effect without experts",
        ),
        (lambda: tlora.lora_config(model, captured()), "rank_by_expert"),
    ]
    for call, words in refusals:
        with pytest.raises(ValueError, match=words):
            call()


def _recipe() -> tlora.Recipe:
    return tlora.Recipe.named("captured").override(allocate={"rank_by_expert": True})
