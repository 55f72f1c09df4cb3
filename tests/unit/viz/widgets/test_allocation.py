"""AllocationExplorer: its allocation is that of `tlora.allocate`, its picture and texts are those of the allocation."""

import html
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from peft.tuners.lora import LoraLayer

import tlora
import viz
from tests.helpers import results
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.pictured import sensitivity as pictured
from tests.helpers.results import same
from tests.helpers.sensitivities import llama_sensitivity, sensitivity
from viz.widgets import allocation

SCORES = [8.0, 1.0, 3.0, 4.0, 2.0, 6.0]


def small() -> Any:
    """Six modules: q_proj, k_proj and down_proj of two layers."""
    return sensitivity(SCORES)


def explorer(**options: Any) -> viz.AllocationExplorer:
    return viz.AllocationExplorer(None, small(), rank=4, **options)


def select(it: viz.AllocationExplorer, layer: int | None, projection: str | None) -> None:
    it.controls["layer"].value = layer
    it.controls["projection"].value = projection


def text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "|", page))


def test_begins_with_the_allocation_of_its_knobs():
    options = {
        "alpha": 16,
        "temperature": 0.5,
        "pinned": {"layers.0.k_proj": 3},
        "exclude_modules": [1],
        "adapt_ranks": True,
    }
    assert same(explorer(**options).allocation, tlora.allocate(small(), rank=4, **options))


@pytest.mark.parametrize(
    ("control", "value", "option"),
    [
        ("rank", 7, {"rank": 7}),
        ("temperature", 0.35, {"temperature": 0.35}),
        ("budget", "parameters", {"budget": "parameters"}),
        ("scaling", "allocated", {"scaling": "allocated"}),
        ("min_rank", 3, {"min_rank": 3}),
        ("max_rank", 5, {"max_rank": 5}),
    ],
)
def test_each_control_is_its_knob(control, value, option):
    it = explorer(alpha=6)
    before = it.allocation
    it.controls[control].value = value
    expected = tlora.allocate(small(), **({"rank": 4, "alpha": 6} | option))
    assert same(it.allocation, expected)
    assert not same(it.allocation, before)


def test_controls_add_up():
    it = explorer()
    for control, value in {"rank": 9, "temperature": 0.5, "min_rank": 2, "scaling": "allocated"}.items():
        it.controls[control].value = value
    assert same(it.allocation, tlora.allocate(small(), rank=9, temperature=0.5, min_rank=2, scaling="allocated"))


def test_moving_a_control_never_touches_the_sensitivity():
    it = explorer()
    before = it.sensitivity.per_sample.clone()
    it.controls["rank"].value = 9
    assert it.sensitivity.per_sample.equal(before)


@pytest.mark.parametrize(
    ("layer", "projection", "exclude"),
    [
        (0, "k_proj", ["layers.0.k_proj"]),
        (None, "k_proj", ["k_proj"]),
        (1, None, [1]),
    ],
)
def test_modules_are_excluded_and_taken_back(layer, projection, exclude):
    it = explorer()
    before = it.allocation
    select(it, layer, projection)
    it.controls["way"].value = "exclude"
    assert it.options["exclude_modules"] == exclude
    assert same(it.allocation, tlora.allocate(small(), rank=4, exclude_modules=exclude))
    it.controls["way"].value = "by score"
    assert same(it.allocation, before)


def test_excluding_part_after_part_is_said_in_the_shortest_way():
    it = explorer()
    for layer in (0, 1):
        select(it, layer, "k_proj")
        it.controls["way"].value = "exclude"
    select(it, 0, None)
    it.controls["way"].value = "exclude"
    assert it.options["exclude_modules"] == ["k_proj", 0]
    select(it, 0, "q_proj")
    it.controls["way"].value = "by score"
    assert it.options["exclude_modules"] == ["k_proj", "layers.0.down_proj"]


def test_a_module_or_a_projection_is_pinned():
    it = explorer()
    select(it, None, "k_proj")
    it.controls["set_rank"].value = 2
    it.controls["way"].value = "pin"
    select(it, 1, "q_proj")
    it.controls["way"].value = "pin"
    it.controls["set_rank"].value = 9
    pinned = {"layers.0.k_proj": 2, "layers.1.k_proj": 2, "layers.1.q_proj": 9}
    assert same(it.allocation, tlora.allocate(small(), rank=4, pinned=pinned))
    assert it.allocation.edits == {}


def test_setting_a_rank_is_an_edit_and_the_others_share_the_rest():
    it = explorer()
    select(it, 1, "down_proj")
    it.controls["set_rank"].value = 11
    made = tlora.allocate(small(), rank=4)
    assert same(it.allocation, made.edit({"layers.1.down_proj": 11}))
    assert it.controls["way"].value == "edit"
    assert sum(it.allocation.ranks.values()) == 4 * 6
    it.controls["rank"].value = 5
    assert same(it.allocation, tlora.allocate(small(), rank=5).edit({"layers.1.down_proj": 11}))
    it.controls["way"].value = "by score"
    assert same(it.allocation, tlora.allocate(small(), rank=5))


def test_selecting_modules_shows_how_they_are_treated_and_changes_nothing():
    it = explorer(pinned={"layers.0.q_proj": 5}, exclude_modules="k_proj")
    before = it.state, it.image.value
    seen = {}
    for place in ((0, "q_proj"), (0, "k_proj"), (1, "down_proj"), (None, "q_proj"), (None, None)):
        select(it, *place)
        seen[place] = it.controls["way"].value
    assert seen == {
        (0, "q_proj"): "pin",
        (0, "k_proj"): "exclude",
        (1, "down_proj"): "by score",
        (None, "q_proj"): None,
        (None, None): None,
    }
    select(it, 0, "q_proj")
    assert it.controls["set_rank"].value == 5
    assert (it.state, it.image.value) == before


def test_a_way_replaces_the_one_before():
    it = explorer()
    select(it, 0, "q_proj")
    for way in allocation.WAYS[1:]:
        it.controls["way"].value = way
        state = it.state
        assert [bool(state.edits), bool(state.pinned), bool(state.exclude_modules)] == [
            way == "edit",
            way == "pin",
            way == "exclude",
        ]


def test_impossible_knobs_are_answered_in_the_librarys_words_and_change_nothing():
    it = explorer()
    state, made, picture, summary = it.state, it.allocation, it.image.value, it.summary.value
    it.controls["min_rank"].value = 6
    with pytest.raises(ValueError, match="min_rank") as refusal:
        tlora.allocate(small(), rank=4, min_rank=6)
    assert str(refusal.value) in text(it.message.value)
    assert it.state is state
    assert it.allocation is made
    assert (it.image.value, it.summary.value) == (picture, summary)
    it.controls["rank"].value = 6  # now there is enough for the floor
    assert it.message.value == ""
    assert same(it.allocation, tlora.allocate(small(), rank=6, min_rank=6))


def test_a_refused_rank_by_hand_is_taken_back():
    it = explorer(max_rank=10)
    select(it, 0, "q_proj")
    rank = it.controls["set_rank"].value
    it.controls["set_rank"].max = 64
    it.controls["set_rank"].value = 20
    assert "layers.0.q_proj" in it.message.value
    assert "at most 10" in it.message.value
    assert (it.controls["set_rank"].value, it.controls["way"].value) == (rank, "by score")
    it.controls["temperature"].value = 0.5
    assert it.message.value == ""
    assert same(it.allocation, tlora.allocate(small(), rank=4, max_rank=10, temperature=0.5))


def test_excluding_everything_is_refused():
    it = explorer()
    select(it, None, None)
    it.controls["way"].value = "exclude"
    assert "exclude_modules leaves none of the 6 modules" in it.message.value
    assert len(it.allocation.ranks) == 6
    assert it.controls["way"].value == "by score"


def test_excluding_a_projection_that_has_a_share_is_refused_and_taken_back():
    it = explorer(projection_shares={"q_proj": 0.3})
    select(it, None, "q_proj")
    it.controls["way"].value = "exclude"
    assert "|projection_shares names 'q_proj', which is no projection of the allocation here" in text(it.message.value)
    assert (it.controls["way"].value, it.state.exclude_modules) == ("by score", ())
    it.controls["rank"].value = 5
    assert it.message.value == ""
    assert same(it.allocation, tlora.allocate(small(), rank=5, projection_shares={"q_proj": 0.3}))


def test_a_projection_that_a_layer_has_not():
    part = sensitivity(SCORES[:5])  # layer 1 without down_proj
    it = viz.AllocationExplorer(None, part, rank=4)
    made = it.allocation
    select(it, 1, "down_proj")
    it.controls["way"].value = "exclude"
    assert "no such projection in this layer" in it.message.value
    assert it.allocation is made


def test_knobs_to_begin_with_are_refused_at_once():
    with pytest.raises(ValueError, match="min_rank"):
        explorer(min_rank=5)
    with pytest.raises(KeyError, match="which is no module or projection here"):
        explorer(exclude_modules="o_proj")
    with pytest.raises(TypeError, match="depth"):
        explorer(depth=3)
    with pytest.raises(TypeError, match=r"pass calibrate\(\.\.\.\)\.sensitivity"):
        viz.AllocationExplorer(None, {"q_proj": 1.0})


@pytest.mark.parametrize("model", ["2 layers", "30 layers", "BERT", "T5"])
def test_cells_are_the_ranks(model):
    it = viz.AllocationExplorer(None, pictured(model), max_rank=30, temperature=0.8)
    first = next(iter(it.sensitivity.projections.values()))
    select(it, None, first)
    it.controls["way"].value = "exclude"
    ax = it.render(it.state, plt.figure().add_subplot())
    cells = ax.collections[0].get_array()
    projections = list(dict.fromkeys(it.sensitivity.projections.values()))
    for name, layer in it.sensitivity.layers.items():
        cell = cells[projections.index(it.sensitivity.projections[name]), layer]
        if it.sensitivity.projections[name] == first:
            assert cell is np.ma.masked
        else:
            assert cell == it.allocation.ranks[name]
    plt.close("all")


def test_totals_are_means_as_multiples_of_the_uniform_rank():
    it = explorer(exclude_modules=["layers.0.k_proj"])
    figure = plt.figure()
    it.render(it.state, figure.add_subplot())
    bars = {ax.get_ylabel() or ax.get_xlabel(): ax for ax in figure.axes if "× uniform" in ax.get_ylabel()}
    heights = [path.vertices[:, 1].max() for path in bars["× uniform"].collections[0].get_paths()]
    ranks = it.allocation.ranks
    by_layer = [sum(r for n, r in ranks.items() if it.sensitivity.layers[n] == layer) / 3 / 4 for layer in (0, 1)]
    np.testing.assert_allclose(heights, by_layer)
    plt.close("all")


def test_what_is_set_by_hand_is_outlined():
    it = explorer(pinned={"layers.1.k_proj": 2})
    select(it, 0, "down_proj")
    it.controls["set_rank"].value = 7
    ax = it.render(it.state, plt.figure().add_subplot())
    (marks,) = [c for c in ax.collections if len(c.get_paths()) == 2]
    middles = sorted(tuple(path.vertices[:-1].mean(0).round().astype(int)) for path in marks.get_paths())
    assert middles == [(0, 2), (1, 1)]
    plt.close("all")


def test_costs_stand_beside_those_of_uniform_lora():
    """LLaMA-2-7B at rank 32: the published count of LoRA, and bytes worked out by hand."""
    it = viz.AllocationExplorer(None, llama_sensitivity(), rank=32)
    said = text(it.summary.value)
    made = it.allocation
    lora = 79_953_920
    trained = sum(rank * made.shapes[name][0] for name, rank in made.ranks.items())
    stored = sum(rank * sum(made.shapes[name]) for name, rank in made.ranks.items())
    assert f"|{trained:,}||{lora:,}|" in said
    assert f"|{4 * stored / 1e6:.3g} MB||{4 * lora / 1e6:.3g} MB|" in said
    assert f"|{8 * trained / 1e6:.3g} MB||{8 * lora / 1e6:.3g} MB|" in said
    assert f"{100 * trained / lora:.0f} %" in said
    assert "uniform LoRA, rank 32" in said


def test_changes_are_counted_from_the_allocation_that_was_kept():
    it = explorer()
    first = it.allocation
    assert "nothing changed" in it.summary.value
    it.controls["temperature"].value = 0
    changes = it.changes
    assert changes.equals(it.allocation.compare(first))
    moved = int((changes["rank_change"] != 0).sum())
    assert f"{moved} of 6 modules changed" in it.summary.value
    assert "most: −4 layer 0 q_proj" in it.summary.value  # 8 of 24 ranks, and 4 in a uniform allocation
    it.keep()
    assert it.kept is it.allocation
    assert "nothing changed" in it.summary.value
    it.controls["temperature"].value = 1
    assert (it.changes["rank_change"] == -changes["rank_change"]).all()


def test_keeping_a_allocation_lets_go_of_what_could_not_be_met():
    it = explorer()
    made = it.allocation
    it.controls["min_rank"].value = 6
    it.keep()
    assert it.kept is it.allocation is made
    assert (it.message.value, it.controls["min_rank"].value) == ("", 1)
    it.controls["temperature"].value = 0.5
    assert same(it.allocation, tlora.allocate(small(), rank=4, temperature=0.5))


def test_the_view_of_changes_shows_them():
    it = explorer()
    first = it.allocation.ranks
    it.controls["temperature"].value = 0
    it.controls["view"].value = "change since the kept allocation"
    ax = it.render(it.state, plt.figure().add_subplot())
    cells = ax.collections[0].get_array()
    expected = [[4 - first[f"layers.{layer}.{p}"] for layer in (0, 1)] for p in ("q_proj", "k_proj", "down_proj")]
    np.testing.assert_array_equal(cells, expected)
    plt.close("all")


def test_starting_over_takes_back_everything_but_the_kept_allocation():
    it = explorer(temperature=0.5)
    first = it.allocation
    it.controls["rank"].value = 9
    it.controls["min_rank"].value = 2
    it.controls["max_rank"].value = 20
    select(it, 0, "q_proj")
    it.controls["set_rank"].value = 3
    it.keep()
    kept = it.allocation
    it.start_over()
    assert same(it.allocation, first)
    assert it.kept is kept
    values = {name: it.controls[name].value for name in ("rank", "temperature", "min_rank", "max_rank")}
    assert values == {"rank": 4, "temperature": 0.5, "min_rank": 1, "max_rank": 64}


def test_buttons_do_what_they_say():
    it = explorer()
    it.controls["rank"].value = 9
    made = it.allocation
    it.controls["keep"].click()
    assert it.kept is made
    it.controls["start_over"].click()
    assert it.allocation.rank == 4


def test_code_makes_the_same_allocation():
    it = viz.AllocationExplorer(None, small(), rank=4, alpha=8, projection_shares={"q_proj": 0.5}, adapt_scales=False)
    it.controls["temperature"].value = 0.7
    select(it, None, "k_proj")
    it.controls["set_rank"].value = 2
    it.controls["way"].value = "pin"
    select(it, 1, "down_proj")
    it.controls["set_rank"].value = 6
    select(it, 0, "down_proj")
    it.controls["way"].value = "exclude"
    code = it.code("scores")
    assert "\n" not in code
    assert "pinned={n: 2 for n, p in scores.projections.items() if p == 'k_proj'}" in code
    assert same(eval(code, {"tlora": tlora, "scores": it.sensitivity}), it.allocation)
    assert html.escape(it.code()) in it.summary.value
    again = tlora.allocate(it.sensitivity, **it.options).edit(it.state.edits)
    assert same(again, it.allocation)


def test_code_says_no_more_than_is_asked_for():
    assert explorer().code() == "tlora.allocate(calibration.sensitivity, rank=4)"


@pytest.fixture(scope="module")
def walk() -> tuple[Any, Any, Any]:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    return model, calibration, tlora.task_subspaces(model, calibration, max_rank=12, progress=False)


def test_no_rank_goes_beyond_the_bases(walk):
    _, calibration, subspaces = walk
    it = viz.AllocationExplorer(subspaces, calibration.sensitivity, rank=4)
    assert it.controls["rank"].max == it.controls["max_rank"].max == it.controls["set_rank"].max == 12
    it.controls["rank"].value = 11
    assert max(it.allocation.ranks.values()) <= 12
    assert it.options["max_rank"] == 12
    lower = viz.AllocationExplorer(subspaces, calibration.sensitivity, rank=4, max_rank=6)
    assert max(lower.allocation.ranks.values()) <= 6
    name = calibration.names[0]
    each = viz.AllocationExplorer(subspaces, calibration.sensitivity, rank=4, max_rank={name: 2})
    assert each.allocation.ranks[name] <= 2
    assert max(each.allocation.ranks.values()) <= 12
    assert each.controls["max_rank"].disabled


def test_bases_of_other_modules_are_refused(walk):
    with pytest.raises(ValueError, match=r"of 14 modules and the sensitivity of 6 others"):
        viz.AllocationExplorer(walk[2], small())


def test_the_allocation_that_is_shown_is_the_one_that_is_trained(walk):
    """A slider moved, a module pinned, one left out and one edited: PEFT's layers have exactly those ranks."""
    model, calibration, subspaces = walk
    it = viz.AllocationExplorer(subspaces, calibration.sensitivity, rank=3)
    it.controls["rank"].value = 5
    select(it, 0, "q_proj")
    it.controls["way"].value = "exclude"
    select(it, 1, "down_proj")
    it.controls["set_rank"].value = 9
    made = it.allocation
    adapted = tlora.attach(model, subspaces, made)
    layers = {n: m for n, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    try:
        assert {name: layer.lora_A["default"].weight.shape[0] for name, layer in layers.items()} == made.ranks
        assert {name: layer.scaling["default"] for name, layer in layers.items()} == pytest.approx(made.scalings)
        assert made.ranks["model.layers.1.mlp.down_proj"] == 9
        assert "model.layers.0.self_attn.q_proj" not in layers
    finally:
        tlora.detach(adapted)


def test_pinned_ranks_of_an_explorer_are_its_own() -> None:
    sensitivity = results.sensitivity()
    pinned = {sensitivity.names[0]: 2}
    explorer = viz.AllocationExplorer(None, sensitivity, rank=4, pinned=pinned)
    explorer.options["pinned"].clear()
    assert explorer.state.pinned == pinned
