"""Ranks by captured gradient: no other ranks capture more, and the limits, edits and files are those of all ranks."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tlora
from tests.helpers.allocations import assert_budget_is_met, attempt
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.sensitivities import sensitivity
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.allocation.stability import allocation_stability
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces

quick = settings(max_examples=60, deadline=None)
SCORES = [4.0, 2.0, 1.0]
ENERGIES = [[9.0, 1.0, 0.25, 0.0], [16.0, 4.0, 4.0, 1.0], [100.0, 25.0, 9.0, 4.0]]
NAMES = ["layers.0.q_proj", "layers.0.k_proj", "layers.0.down_proj"]
SHAPES = [(8, 16), (4, 16), (16, 32)]


def directions(source, energies, kind="g"):
    """Subspaces with these energies of each module, in order; their bases are not read."""
    values = {name: torch.tensor(each).sqrt() for name, each in zip(source.names, energies, strict=True)}
    empty = dict.fromkeys(source.names, torch.empty(0))
    return Subspaces(source.targets, kind, 4, empty, values, {}, empty, {}, empty, Meta("tiny"))


def captured(rank=2, energies=ENERGIES, **options):
    source = sensitivity(SCORES, SHAPES)
    return allocate(source, rank, by="captured", subspaces=directions(source, energies), **options)


@st.composite
def cases(draw):
    """A sensitivity of 2 to 4 modules with the energies of up to 5 directions each."""
    size = draw(st.integers(2, 4))
    shapes = draw(st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=size, max_size=size))
    value = st.floats(0, 100, width=32)
    energies = []
    for shape in shapes:
        count = draw(st.integers(2, min(5, *shape)))
        energies.append(sorted(draw(st.lists(value, min_size=count, max_size=count)), reverse=True))
    return sensitivity(draw(st.lists(st.integers(1, 9), min_size=size, max_size=size)), shapes), energies


@quick
@given(cases(), st.integers(1, 3), st.integers(0, 2), st.none() | st.integers(1, 5))
def test_no_other_ranks_within_the_limits_capture_more(case, rank, min_rank, max_rank):
    source, energies = case
    subspaces = directions(source, energies)
    options = {"by": "captured", "subspaces": subspaces, "min_rank": min_rank, "max_rank": max_rank}
    found, refusal = attempt(allocate, source, rank, **options)
    most = [min(len(each), max_rank or len(each)) for each in energies]
    choices = [
        ranks
        for ranks in itertools.product(*(range(min_rank, high + 1) for high in most))
        if sum(ranks) == rank * len(energies)
    ]
    assert bool(refusal) == (not choices)
    if choices:
        squares = [values.double().numpy() ** 2 for values in subspaces.singular_values.values()]

        def energy(ranks):
            return math.fsum(square[:r].sum() for square, r in zip(squares, ranks, strict=True))

        ranks = [found.ranks.get(name, 0) for name in source.names]
        assert tuple(ranks) in choices
        assert energy(ranks) == pytest.approx(max(map(energy, choices)), rel=1e-12)
        assert found.to_frame()["captured"].sum() == pytest.approx(energy(ranks), rel=1e-12)


@quick
@given(cases(), st.integers(1, 2), st.sampled_from(["ranks", "parameters"]), st.data())
def test_budgets_pins_and_edits_are_met(case, rank, budget, data):
    source, energies = case
    options = {"by": "captured", "subspaces": directions(source, energies), "budget": budget}
    name = data.draw(st.sampled_from(source.names))
    allocation = allocate(source, rank, **options)
    assert_budget_is_met(allocation)
    edited, refusal = attempt(allocation.edit, {name: data.draw(st.integers(1, 6))})
    if not refusal:
        assert_budget_is_met(edited)
        assert edited.energies == allocation.energies
        assert edited == allocate(source, rank, **options).edit(edited.edits)
        assert edited.edit({name: None}) == allocation


def test_a_rank_costs_what_the_budget_counts():
    assert list(captured().ranks.values()) == [1, 2, 3]  # 9 | 16 4 | 100 25 9, of 6 ranks; 4 of k_proj ties with 4
    # Parameters: 2 x (8 + 4 + 16) = 56. By parameter: 9/8 1/8 | 16/4 4/4 4/4 1/4 | 100/16 25/16 9/16 4/16
    assert list(captured(budget="parameters").ranks.values()) == [1, 4, 2]
    assert captured(budget="parameters").budget_used == 56


def test_limits_and_exclusions_hold():
    assert list(captured(max_rank=2).ranks.values()) == [2, 2, 2]
    assert list(captured(pinned={NAMES[0]: 3}).ranks.values()) == [3, 1, 2]
    assert captured(exclude_modules="k_proj").ranks == {NAMES[0]: 2, NAMES[2]: 4}
    assert list(captured(adapt_ranks=False).ranks.values()) == [2, 2, 2]
    without_floor = captured(min_rank=0, rank=1)
    assert without_floor.dropped == [NAMES[0]]


def test_scales_follow_the_score_as_ever():
    source = sensitivity(SCORES, SHAPES)
    by_score = allocate(source, 2).to_frame().set_index("module")["alpha"]
    assert captured().to_frame().set_index("module")["alpha"].equals(by_score)
    assert set(captured(adapt_scales=False).scalings.values()) == {1.0}


def test_the_table_says_what_decided():
    frame = captured(rank=3, max_rank={NAMES[1]: 2}, min_rank={NAMES[0]: 3}).to_frame()
    assert frame["rank"].tolist() == [3, 2, 4]
    assert frame["captured"].tolist() == [10.25, 20, 138]
    assert frame["ideal"].tolist() == [2, 3, math.inf]  # takes all directions that are known
    assert frame["decided_by"].tolist() == ["floor", "ceiling", "ceiling"]
    assert captured().to_frame()["decided_by"].tolist() == ["captured"] * 3
    assert np.isnan(allocate(sensitivity(SCORES, SHAPES), 2).to_frame()["captured"]).all()
    assert "by captured gradient" in repr(captured())


def test_saved_and_loaded_it_can_be_edited_on(tmp_path):
    allocation = captured(budget="parameters")
    loaded = Allocation.load(allocation.save(tmp_path / "allocation"))
    assert loaded == allocation
    assert loaded.edit({NAMES[2]: 1}) == allocation.edit({NAMES[2]: 1})
    again = allocate(sensitivity(SCORES, SHAPES), 3, by="captured", subspaces=loaded)  # without the directions
    assert again == captured(rank=3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_the_subspaces_of_a_model_it_captures_what_the_mean_gradient_has(family):
    model = tiny_model(family)
    calibration = tlora.calibrate(model, [tiny_batch(family)], gradient=True, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=6, kind="g", progress=False)
    allocation = tlora.allocate(calibration.sensitivity, 2, by="captured", subspaces=subspaces, adapt_scales=False)
    assert_budget_is_met(allocation)
    energies = {name: calibration.gradient[name].dense().double().square().sum() for name in allocation.names}
    exact = {name: np.linalg.svd(calibration.gradient[name].dense().double().numpy())[1] ** 2 for name in energies}
    frame = allocation.to_frame().set_index("module")
    for name, rank in allocation.ranks.items():
        assert frame.loc[name, "captured"] == pytest.approx(exact[name][:rank].sum(), rel=1e-4)
    # As the largest of all squared singular values together, one for each module being given.
    rest = sorted(itertools.chain.from_iterable(values[1:6] for values in exact.values()), reverse=True)
    best = sum(values[0] for values in exact.values()) + sum(rest[: len(exact)])
    assert frame["captured"].sum() == pytest.approx(best, rel=1e-4)
    tlora.attach(model, subspaces, allocation)


SOURCE = sensitivity(SCORES, SHAPES)
FEWER = directions(sensitivity(SCORES[:2], SHAPES[:2]), ENERGIES[:2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "captured"}, "there are none.*'g'"),
        ({"by": "captured", "subspaces": directions(SOURCE, ENERGIES, "wc")}, "kind 'wc'"),
        ({"by": "captured", "subspaces": FEWER}, NAMES[2]),
        ({"by": "captured", "subspaces": allocate(SOURCE, 2)}, "by score"),
        ({"by": "captured", "subspaces": captured(exclude_modules="k_proj")}, NAMES[1]),
        ({"subspaces": directions(SOURCE, ENERGIES)}, "no effect on by='score'"),
        ({"by": "energy"}, "by must be"),
        ({"by": "captured", "subspaces": directions(SOURCE, ENERGIES), "pinned": {NAMES[2]: 5}}, "at most 4"),
        ({"by": "captured", "subspaces": directions(SOURCE, [e[:1] for e in ENERGIES])}, "larger max_rank"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        allocate(SOURCE, 2, **options)


def test_a_resampling_of_scores_is_refused():
    source = sensitivity([SCORES, SCORES], SHAPES)
    allocation = allocate(source, 2, by="captured", subspaces=directions(source, ENERGIES))
    with pytest.raises(ValueError, match="by='score'"):
        allocation_stability(source, allocation)
