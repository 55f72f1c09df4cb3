"""Allocations against the definition written naively, and against the published counts."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.sensitivities import llama_sensitivity, sensitivity
from tlora.allocation.allocate import allocate, check_limits
from tlora.allocation.allocation import Allocation

SCORES = [4.0, 2.0, 1.0, 3.0, 1.5, 8.0]
NAMES = [f"layers.{layer}.{role}" for layer in (0, 1) for role in ("q_proj", "k_proj", "down_proj")]


def naive_ranks(scores, rank):
    """Largest remainders in exact fractions; for scores that no limit touches."""
    total = rank * len(scores)
    ideals = [total * Fraction(score) / sum(map(Fraction, scores)) for score in scores]
    assert min(ideals) >= 1
    ranks = [math.floor(ideal) for ideal in ideals]
    order = sorted(range(len(scores)), key=lambda i: (ranks[i] - ideals[i], i))
    for i in order[: total - sum(ranks)]:
        ranks[i] += 1
    return ranks


def ranks_of(allocation):
    return list(allocation.ranks.values())


@pytest.mark.parametrize(("rank", "lora", "only_b"), [(128, 319_815_680, 174_063_616), (32, 79_953_920, 43_515_904)])
def test_published_parameter_counts_of_llama_2_7b(rank, lora, only_b):
    uniform = allocate(llama_sensitivity(), rank=rank, adapt_ranks=False, adapt_scales=False)
    assert uniform.lora.trainable_parameters == lora
    assert uniform.lora.optimizer_bytes == 8 * lora
    assert uniform.trainable_parameters == only_b
    assert uniform.optimizer_bytes == 8 * only_b
    assert uniform.adapter_bytes == uniform.lora.adapter_bytes == 4 * lora
    assert uniform.footprint(freeze_a=False) == uniform.lora


@pytest.mark.parametrize("rank", [32, 128])
def test_both_budgets_of_llama_2_7b(rank):
    source = llama_sensitivity()
    by_ranks, by_parameters = allocate(source, rank=rank), allocate(source, rank=rank, budget="parameters")
    assert by_ranks.budget_used == by_ranks.budget_total == sum(ranks_of(by_ranks)) == rank * 224
    uniform = allocate(source, rank=rank, adapt_ranks=False).trainable_parameters
    assert by_parameters.budget_total == uniform
    assert 0 <= uniform - by_parameters.trainable_parameters < 4096
    shapes = by_parameters.shapes
    assert by_parameters.budget_used == sum(r * shapes[n][0] for n, r in by_parameters.ranks.items())


@pytest.mark.parametrize(("ranks", "scales"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("scaling", ["nominal", "allocated"])
def test_each_part_is_switched_off_on_its_own(ranks, scales, scaling):
    allocation = allocate(sensitivity(SCORES), rank=4, alpha=6, adapt_ranks=ranks, adapt_scales=scales, scaling=scaling)
    expected = naive_ranks(SCORES, 4) if ranks else [4] * 6
    assert ranks_of(allocation) == expected
    for score, rank, factor in zip(SCORES, expected, allocation.scalings.values(), strict=True):
        alpha = max(6, round(6 * 6 * score / sum(SCORES))) if scales else 6
        assert factor == alpha / (4 if scaling == "nominal" else rank)


def test_alpha_is_the_rank_by_default():
    assert allocate(sensitivity(SCORES), rank=4) == allocate(sensitivity(SCORES), rank=4, alpha=4)
    assert allocate(sensitivity(SCORES), rank=np.int64(4)).alpha == 4


def test_alpha_is_rounded_half_to_even():
    allocation = allocate(sensitivity([5.0, 3.0, 1.0, 7.0]), rank=1, alpha=2)  # alpha M S / sum: 2.5, 1.5, 0.5, 3.5
    assert allocation.to_frame()["alpha"].tolist() == [2, 2, 2, 4]


def test_no_alpha_is_below_the_nominal_one_even_when_fractional():
    allocation = allocate(sensitivity([1.0, 1.0, 100.0]), rank=2, alpha=0.75)
    assert allocation.to_frame()["alpha"].tolist() == [0.75, 0.75, 2]


def test_what_a_cap_cuts_off_goes_to_the_others_in_proportion():
    shapes = [(64, 64), (64, 64), (64, 2), (3, 64), (64, 64), (64, 5)]
    allocation = allocate(sensitivity(SCORES, shapes), rank=4)
    # 2, 3 and 5 are full; the other 14 of 24 go 4 : 2 : 1.5.
    assert ranks_of(allocation) == [7, 4, 2, 3, 3, 5]
    reasons = allocation.to_frame().set_index("module")["decided_by"]
    assert reasons[NAMES[5]] == reasons[NAMES[3]] == "ceiling"
    assert reasons[NAMES[0]] == "score"


def test_a_module_without_a_score_keeps_rank_one():
    allocation = allocate(sensitivity([3.0, 0.0, 1.0]), rank=4)
    assert ranks_of(allocation) == [8, 1, 3]
    assert allocation.to_frame()["decided_by"].tolist() == ["score", "floor", "score"]


def test_without_a_floor_modules_that_get_nothing_are_dropped(tmp_path):
    allocation = allocate(sensitivity([20.0, 0.0, 3.0, 0.5, 0.4, 0.1]), rank=2, min_rank=0)
    # ideals 10, 0, 1.5, 0.25, 0.2, 0.05: of 12 ranks one is left after rounding down, and 1.5 lacks most
    assert list(allocation.ranks.items()) == [(NAMES[0], 10), (NAMES[2], 2)]
    assert allocation.dropped == [NAMES[1], *NAMES[3:]]
    assert allocation.excluded == []
    assert allocation.budget_used == allocation.budget_total == 12
    assert list(allocation.scalings.items()) == [(NAMES[0], 10 / 2), (NAMES[2], 2 / 2)]  # alpha M S / sum: 10, 1.5
    assert allocation.to_frame()["module"].tolist() == list(allocation.ranks)
    assert "2 modules with ranks 2 to 10, 4 dropped" in repr(allocation)
    assert "4 dropped" in allocation._repr_html_()
    allocation.save(tmp_path / "saved")
    assert Allocation.load(tmp_path / "saved") == allocation
    edited = allocation.edit({NAMES[4]: 3})
    assert edited.ranks == {NAMES[0]: 8, NAMES[2]: 1, NAMES[4]: 3}
    assert edited.edit({NAMES[4]: None}) == allocation
    assert allocate(sensitivity(SCORES), rank=4, min_rank=0).dropped == []


@pytest.mark.parametrize("budget", ["ranks", "parameters"])
def test_a_floor_of_zero_for_some_modules_alone(budget):
    source = sensitivity([8.0, 0.0, 0.0, 8.0, 8.0, 8.0])
    allocation = allocate(source, rank=1, budget=budget, min_rank={NAMES[1]: 0})
    assert allocation.dropped == [NAMES[1]]
    assert allocation.ranks[NAMES[2]] == 1
    assert allocation.budget_used == allocation.budget_total


def test_parameters_are_spent_in_proportion_of_ranks():
    source = sensitivity([2.0, 1.0, 1.0], [(20, 64), (60, 64), (40, 64)])
    allocation = allocate(source, rank=7, budget="parameters")
    assert ranks_of(allocation) == [12, 6, 6]  # 12 x 20 + 6 x 60 + 6 x 40 = 7 x (20 + 60 + 40)
    assert allocation.budget_used == allocation.budget_total == 840


def allocation_with_every_option():
    return allocate(
        sensitivity([*SCORES, 2.0]),
        rank=4,
        alpha=2.5,
        scaling="allocated",
        budget="parameters",
        max_rank={NAMES[5]: 9},
        min_rank={NAMES[2]: 2},
        pinned={NAMES[0]: 3},
        exclude_modules={"layers.2.q_proj"},
        temperature=0.5,
    ).edit({NAMES[1]: 5})


def test_saved_and_loaded_it_is_the_same_allocation_and_can_be_edited_on(tmp_path):
    allocation = allocation_with_every_option()
    loaded = Allocation.load(allocation.save(tmp_path / "allocation"))
    assert loaded == allocation
    assert loaded.edit({NAMES[3]: 6}) == allocation.edit({NAMES[3]: 6})
    json.dumps(allocation.meta.recipe)


def test_the_table_says_what_the_allocation_is():
    allocation = allocation_with_every_option()
    frame = allocation.to_frame()
    assert list(frame.columns) == list(Allocation.columns)
    assert dict(zip(frame["module"], frame["rank"], strict=True)) == allocation.ranks
    assert frame["parameters"].sum() == allocation.trainable_parameters == allocation.budget_used
    assert (frame["change"] == frame["rank"] - 4).all()
    np.testing.assert_allclose(frame["alpha"] / frame["rank"], frame["scaling"])
    assert frame["decided_by"].tolist()[:2] == ["pinned", "edited"]
    weights = np.sqrt(SCORES)
    np.testing.assert_allclose(frame["ideal"], 4 * 7 * 64 * weights / (64 * weights.sum()))
    assert len(repr(allocation)) < 400
    assert "1 edited" in repr(allocation)
    assert "layers.0.q_proj" in allocation._repr_html_()


OBLONG = [(32, 64), (16, 64), (64, 48)] * 2


def test_the_comparison_of_two_allocations_is_the_difference_in_every_column():
    """Each way round: a module excluded from one of them has rank and scaling 0 there."""
    allocation = allocate(sensitivity(SCORES, OBLONG), rank=4, exclude_modules=NAMES[1])
    other = allocate(sensitivity(SCORES, OBLONG), rank=4, exclude_modules=0, scaling="allocated")
    for one, two in ((allocation, other), (other, allocation), (other, other)):
        frame = one.compare(two).set_index("module")
        assert list(frame.index) == [name for name in NAMES if name in one.ranks or name in two.ranks]
        for name, row in frame.iterrows():
            assert (row["layer"], row["projection"]) == (allocation.layers[name], allocation.projections[name])
            for column in ("rank", "scaling"):
                mine, theirs = (getattr(each, f"{column}s").get(name, 0) for each in (one, two))
                assert (row[column], row[f"other_{column}"], row[f"{column}_change"]) == (mine, theirs, mine - theirs)
            assert row["parameters_change"] == row["rank_change"] * allocation.shapes[name][0]


def test_by_projection_sums_the_table():
    allocation = allocate(sensitivity(SCORES, OBLONG), rank=4, exclude_modules=["k_proj", NAMES[0]])
    table = allocation.by_projection().set_index("projection")
    frame = allocation.to_frame()
    assert list(table.index) == ["q_proj", "k_proj", "down_proj"]
    assert table["uniform"].tolist() == [8, 8, 8]
    assert table["modules"].tolist() == [1, 0, 2]
    for projection, part in frame.groupby("projection"):
        row = table.loc[projection]
        assert row["ranks"] == part["rank"].sum()
        assert row["parameters"] == part["parameters"].sum()
        assert (row["least"], row["mean"], row["most"]) == (part["rank"].min(), part["rank"].mean(), part["rank"].max())
        assert row["mean_scaling"] == part["scaling"].mean()


def test_costs_are_those_of_the_footprints():
    allocation = allocate(sensitivity(SCORES, OBLONG), rank=4)
    table = allocation.costs(freeze_a=False)
    for name, row in table.iterrows():
        assert row["allocation"] == getattr(allocation.footprint(freeze_a=False), name)
        assert row["lora"] == getattr(allocation.lora, name)
        assert row["ratio"] == row["allocation"] / row["lora"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, "rank"),
        ({"rank": 2.5}, (TypeError, ValueError), "rank"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"alpha": math.nan}, ValueError, "alpha"),
        ({"scaling": "paper"}, ValueError, "scaling"),
        ({"budget": "bytes"}, ValueError, "budget"),
        ({"score": "energy"}, ValueError, "score"),
        ({"temperature": 1.5}, ValueError, "temperature"),
        ({"max_rank": 0}, ValueError, "max_rank"),
        ({"min_rank": {NAMES[0]: -1}}, ValueError, f"min_rank of {NAMES[0]}"),
        ({"pinned": {NAMES[0]: -1}}, ValueError, f"pinned rank of {NAMES[0]}"),
        ({"pinned": {"layers.0.q": 1}}, KeyError, f"pinned names 'layers.0.q'.*{NAMES[0]}"),
        ({"min_rank": {"layers.9.q_proj": 1}}, KeyError, "min_rank names 'layers.9.q_proj'"),
        ({"max_rank": {"layers.9.q_proj": 1}}, KeyError, "max_rank names 'layers.9.q_proj'"),
        ({"exclude_modules": ["v_proj"]}, KeyError, "exclude_modules names 'v_proj'"),
        ({"exclude_modules": 7}, KeyError, "layer 7"),
    ],
)
def test_an_option_out_of_range_is_refused_with_and_without_scores(options, error, words):
    source = sensitivity(SCORES)
    with pytest.raises(error, match=words):
        allocate(source, **({"rank": 4} | options))
    with pytest.raises(error, match=words):
        check_limits(source.targets, **({"rank": 4} | options))


def test_scores_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="all 4 sensitivities are zero"):
        allocate(sensitivity([0.0] * 4), rank=2)
    check_limits(sensitivity([0.0] * 4).targets, rank=2)
