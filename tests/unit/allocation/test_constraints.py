"""Options: what each does to an allocation, properties that every allocation has, and refusals that say a way out."""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.helpers.allocations import assert_budget_is_met, attempt
from tests.helpers.sensitivities import sensitivity
from tlora.allocation.allocate import allocate, check_limits, ranks_to_edit
from tlora.allocation.options import AllocationOptions

SCORES = [4.0, 2.0, 1.0, 3.0, 1.5, 8.0]
Q0, K0, D0, Q1, K1, D1 = [f"layers.{layer}.{role}" for layer in (0, 1) for role in ("q_proj", "k_proj", "down_proj")]
SHAPES = [(32, 64), (16, 64), (64, 48), (32, 64), (16, 64), (64, 48)]
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
budgets = st.sampled_from(["ranks", "parameters"])


@st.composite
def sources(draw):
    """Sensitivities of 2 to 9 modules with shapes up to 20 by 20."""
    size = draw(st.integers(2, 9))
    score = st.one_of(st.integers(0, 9).map(float), st.floats(0, 1000, width=32))
    scores = draw(st.lists(score, min_size=size, max_size=size).filter(any))
    shapes = draw(st.lists(st.tuples(st.integers(4, 20), st.integers(4, 20)), min_size=size, max_size=size))
    return sensitivity(scores, shapes)


@quick
@given(sources(), st.integers(1, 4), budgets, st.floats(0, 1), st.booleans())
def test_every_allocation_meets_its_budget_within_the_matrices(source, rank, budget, temperature, ranks):
    assert_budget_is_met(allocate(source, rank, budget=budget, temperature=temperature, adapt_ranks=ranks))


@quick
@given(st.lists(st.floats(0, 1000, width=32), min_size=2, max_size=12).filter(any), st.integers(1, 8), budgets)
def test_a_higher_score_never_gets_less(scores, rank, budget):
    allocation = allocate(sensitivity(scores, (16, 24)), rank, budget=budget)
    rising = sorted(allocation.ranks, key=lambda name: allocation.scores[name])
    ranks, scalings = [allocation.ranks[n] for n in rising], [allocation.scalings[n] for n in rising]
    by_score = [allocation.scores[n] for n in rising]
    for i in range(len(rising) - 1):
        if by_score[i] < by_score[i + 1]:
            assert ranks[i] <= ranks[i + 1]
        assert scalings[i] <= scalings[i + 1]


@quick
@given(sources(), st.integers(1, 4), budgets, st.integers(0, 3), st.integers(3, 20), st.data())
def test_the_ranks_that_an_edit_may_have_are_those_that_it_accepts(source, rank, budget, least, most, data):
    """Of one to three modules at once, on top of an edit of another one."""
    options = {"budget": budget, "min_rank": least, "max_rank": most}
    allocation, refusal = attempt(allocate, source, rank, **options)
    assume(not refusal)
    *names, other = data.draw(st.lists(st.sampled_from(source.names), min_size=2, max_size=4, unique=True))
    edits = {other: data.draw(st.integers(1, min(most, *source.shapes[other])))}
    accepted = [r for r in range(1, 25) if not attempt(allocation.edit, edits | dict.fromkeys(names, r))[1]]
    assert list(ranks_to_edit(source, AllocationOptions(rank, **options), None, edits, names)) == accepted


@quick
@given(st.lists(st.integers(1000, 2999), min_size=2, max_size=10), st.integers(3, 8), st.randoms())
def test_the_order_of_the_modules_only_breaks_ties(scores, rank, random):
    remainders = [rank * len(scores) * score % sum(scores) for score in scores]
    assume(len(set(remainders)) == len(scores))
    order = list(range(len(scores)))
    random.shuffle(order)
    allocation = list(allocate(sensitivity(scores, (32, 32)), rank).ranks.values())
    shuffled = list(allocate(sensitivity([scores[i] for i in order], (32, 32)), rank).ranks.values())
    assert shuffled == [allocation[i] for i in order]


@quick
@given(sources(), st.integers(1, 4), budgets, st.data())
def test_edits_keep_the_budget_or_are_refused(source, rank, budget, data):
    allocation = allocate(source, rank, budget=budget)
    for _ in range(2):
        name = data.draw(st.sampled_from(list(allocation.ranks)))
        value = data.draw(st.integers(1, 20))
        edited, refusal = attempt(allocation.edit, {name: value})
        if refusal:
            assert re.search(r"at most \d|a rank of \d+ or (less|more)|raise pinned", refusal)
            continue
        assert edited.ranks[name] == value
        assert edited.edits == allocation.edits | {name: value}
        assert edited.budget_total == allocation.budget_total
        assert_budget_is_met(edited)
        assert edited.edit({name: None}).edits == {n: r for n, r in allocation.edits.items() if n != name}
        allocation = edited


@quick
@given(sources(), st.integers(1, 12), budgets, st.data())
def test_the_values_that_a_refusal_names_would_do(source, rank, budget, data):
    names = list(source.shapes)
    options = {
        "min_rank": data.draw(st.integers(1, 4)),
        "pinned": data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 4), max_size=2)),
        "max_rank": data.draw(st.none() | st.integers(4, 12)),
    }
    allocation, refusal = attempt(allocate, source, rank, budget=budget, **options)
    if allocation:
        assert_budget_is_met(allocation)
    if found := re.search(r"take a rank of (\d+) or (less|more)(?! for)", refusal):
        assert_budget_is_met(allocate(source, int(found[1]), budget=budget, **options))
        assert (int(found[1]) < rank) == (found[2] == "less")
    if found := re.search(r"a min_rank of (\d+) or less", refusal):
        allocate(source, rank, budget=budget, **(options | {"min_rank": int(found[1])}))
    if found := re.search(r"a rank of (\d+) or less for (\S+)$", refusal):
        pinned = options["pinned"] | {found[2]: int(found[1])}
        allocate(source, rank, budget=budget, **(options | {"pinned": pinned}))


@settings(parent=quick, max_examples=300)
@given(sources(), st.integers(1, 6), budgets, st.none() | st.integers(2, 12), st.data())
def test_the_ranks_of_a_allocation_can_be_pinned_and_give_the_allocation(source, rank, budget, max_rank, data):
    """With what parameters leave as a rest, too."""
    options = {"budget": budget, "max_rank": max_rank}
    allocation, _ = attempt(allocate, source, rank, **options)
    assume(allocation)
    assert allocate(source, rank, **options, pinned=allocation.ranks).ranks == allocation.ranks
    assert allocation.edit(allocation.ranks).ranks == allocation.ranks
    name = data.draw(st.sampled_from(list(allocation.ranks)))
    edited = allocation.edit({name: allocation.ranks[name]})
    assert edited.ranks[name] == allocation.ranks[name]
    assert edited.budget_used <= allocation.budget_total
    assert budget == "parameters" or edited.budget_used == allocation.budget_total


def test_temperature_lies_between_uniform_and_proportional():
    source = sensitivity(SCORES)
    uniform = allocate(source, 6, temperature=0)
    assert set(uniform.ranks.values()) == {6}
    assert set(uniform.scalings.values()) == {1.0}
    half = allocate(source, 6, temperature=0.5)
    weights = np.sqrt(SCORES)
    np.testing.assert_allclose(list(half.ranks.values()), 36 * weights / weights.sum(), atol=0.999)
    alphas = [max(6, round(36 * w / weights.sum())) for w in weights]
    assert half.to_frame()["alpha"].tolist() == alphas
    spreads = [np.ptp(list(allocate(source, 6, temperature=t).ranks.values())) for t in (0, 0.3, 0.6, 1)]
    assert spreads == sorted(spreads)


def test_a_pin_replaces_a_floor_but_no_ceiling():
    allocation = allocate(sensitivity(SCORES), 6, min_rank=4, pinned={D1: 1})
    assert allocation.ranks[D1] == 1
    assert allocation.to_frame().set_index("module").loc[D1, "decided_by"] == "pinned"
    with pytest.raises(ValueError, match=f"pinned asks for rank 9 of {D1}, which max_rank limits to 8"):
        allocate(sensitivity(SCORES), 6, max_rank=8, pinned={D1: 9})


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (D1, [Q0, K0, D0, Q1, K1]),
        (0, [Q1, K1, D1]),
        ("down_proj", [Q0, K0, Q1, K1]),
        (["q_proj", 1], [K0, D0]),
        ({D0, D1, K0}, [Q0, Q1, K1]),
        (np.int64(1), [Q0, K0, D0]),
    ],
)
@pytest.mark.parametrize("budget", ["ranks", "parameters"])
def test_excluded_modules_leave_their_budget_to_the_others(exclude, left, budget):
    everyone = allocate(sensitivity(SCORES, SHAPES), 4, budget=budget)
    allocation = allocate(sensitivity(SCORES, SHAPES), 4, budget=budget, exclude_modules=exclude)
    for columns in (allocation.ranks, allocation.scalings, allocation.scores):
        assert list(columns) == left
    for places in ("shapes", "layers", "projections"):
        assert getattr(allocation, places) == getattr(everyone, places)
    assert allocation.excluded == [name for name in everyone.ranks if name not in left]
    assert allocation.budget_total == everyone.budget_total
    assert allocation.lora == everyone.lora
    assert_budget_is_met(allocation)
    share = SCORES[[Q0, K0, D0, Q1, K1, D1].index(left[0])] / sum(allocation.scores.values())
    assert allocation.to_frame()["alpha"][0] == max(4, round(4 * len(left) * share))


EVERYONE = dict.fromkeys((Q0, K0, D0, Q1, K1, D1), 3)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"min_rank": 6}, "a rank of 6 or more, or a min_rank of 4 or less"),
        ({"pinned": {D1: 22}}, f"a rank of 5 or more, or a rank of 19 or less for {D1}"),
        ({"pinned": {D1: 99}}, "at most 48"),
        ({"min_rank": 17}, "at most 16"),
        ({"max_rank": 3}, "a rank of 3 or less, or raise max_rank"),
        ({"exclude_modules": [0, Q1, K1], "max_rank": 5}, "exclude fewer modules, or raise max_rank"),
        ({"pinned": EVERYONE}, "a rank of 3 or less, or raise pinned ranks by 6 ranks"),
        # No rank fits these floors, and nothing is excluded.
        ({"pinned": EVERYONE | {D1: 1}, "max_rank": 3}, "makes 24: raise max_rank, or raise pinned"),
        # No rank fits if every module is pinned: none is named.
        ({"pinned": {D1: 5, **dict.fromkeys((Q0, K0, D0, Q1, K1), 4)}}, f"24: take a rank of 3 or less for {K1}"),
        ({"min_rank": {Q0: 20}, "max_rank": {Q0: 20, K0: 1, D0: 1, Q1: 1, K1: 1, D1: 1}}, "lower by 1 ranks in all"),
        ({"exclude_modules": [0, 1]}, f"keep at least one, such as {D1}"),
        ({"exclude_modules": [0], "pinned": {Q0: 1}}, "leave it out of one"),
    ],
)
def test_limits_that_cannot_be_met_are_refused_with_the_nearest_value(options, way):
    for call, source in ((allocate, sensitivity(SCORES, SHAPES)), (check_limits, sensitivity(SCORES, SHAPES).targets)):
        with pytest.raises(ValueError, match=re.escape(way)):
            call(source, 4, **options)


@quick
@given(sources(), st.integers(1, 6), budgets, st.integers(0, 4), st.none() | st.integers(1, 12), st.data())
def test_limits_pass_the_check_exactly_if_they_can_be_allocated(source, rank, budget, min_rank, max_rank, data):
    names = st.sampled_from(list(source.shapes))
    pinned = data.draw(st.dictionaries(names, st.integers(1, 6), max_size=2))
    options = {"budget": budget, "min_rank": min_rank, "max_rank": max_rank, "pinned": pinned}
    assert attempt(check_limits, source.targets, rank, **options)[1] == attempt(allocate, source, rank, **options)[1]


@pytest.mark.parametrize(
    ("ranks", "error", "words"),
    [
        ({D1: 20}, ValueError, f"a rank of 10 or less for {D1}"),
        ({K0: 17}, ValueError, f"edited asks for rank 17 of {K0}"),
        ({K0: 0}, ValueError, f"rank of {K0}"),
        ({"lm_head": None}, KeyError, "lm_head"),
        ({"lm_head": 2}, KeyError, "lm_head"),
    ],
)
def test_edits_that_cannot_be_made_are_refused_with_the_nearest_value(ranks, error, words):
    allocation = allocate(sensitivity(SCORES, SHAPES), 4).edit({D0: 10})
    with pytest.raises(error, match=words):
        allocation.edit(ranks)


def test_an_edit_replaces_a_pin_and_can_be_taken_back():
    allocation = allocate(sensitivity(SCORES), 6, pinned={D1: 4})
    edited = allocation.edit({D1: 7, Q0: 2})
    assert (edited.ranks[D1], edited.ranks[Q0]) == (7, 2)
    assert (allocation.ranks[D1], allocation.edits) == (4, {})
    assert edited.edit({D1: None, Q0: None}) == allocation
