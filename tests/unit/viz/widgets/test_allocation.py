"""A state is the arguments of `tlora.allocate`: in the shortest line of Python, and in the picture."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from peft.tuners.lora import LoraLayer

import tlora
import viz
from tests.helpers import results
from tests.helpers.pictured import sensitivity as pictured
from tests.helpers.results import same
from tests.helpers.sensitivities import sensitivity

SCORES = [8.0, 1.0, 3.0, 4.0, 2.0, 6.0]


def small() -> Any:
    """Six modules: q_proj, k_proj and down_proj of two layers."""
    return sensitivity(SCORES)


def explorer(**options: Any) -> viz.Workbench:
    return viz.Workbench(small(), rank=4, **options)


def test_options_to_begin_with_are_refused_at_once():
    with pytest.raises(ValueError, match="min_rank"):
        explorer(min_rank=5)
    with pytest.raises(KeyError, match="which is not a module or projection here"):
        explorer(exclude_modules="o_proj")
    with pytest.raises(TypeError, match="depth"):
        explorer(depth=3)
    with pytest.raises(TypeError, match=r"pass what tlora\.calibrate returned"):
        viz.Workbench({"q_proj": 1.0})


@pytest.mark.parametrize("model", ["2 layers", "30 layers", "BERT", "T5"])
def test_cells_are_the_ranks(model):
    it = viz.Workbench(pictured(model), max_rank=30, temperature=0.8)
    first = next(iter(it.sensitivity.projections.values()))
    it.set(exclude_modules=first)
    ax = viz.plot_allocation(it.allocation, ax=plt.figure().add_subplot())
    cells = ax.collections[0].get_array()
    projections = list(dict.fromkeys(it.sensitivity.projections.values()))
    for name, layer in it.sensitivity.layers.items():
        cell = cells[projections.index(it.sensitivity.projections[name]), layer]
        if it.sensitivity.projections[name] == first:
            assert cell is np.ma.masked
        else:
            assert cell == it.allocation.ranks[name]
    plt.close("all")


def test_code_makes_the_same_plan():
    it = viz.Workbench(small(), rank=4, alpha=8, projection_shares={"q_proj": 0.5}, adapt_scales=False)
    it.set(temperature=0.7, pinned={"layers.0.k_proj": 2, "layers.1.k_proj": 2})
    it.leave_out("layers.0.down_proj")
    it.set_rank("layers.1.down_proj", 8)
    code = it.code("scores")
    assert "\n" not in code
    assert "pinned={n: 2 for n, p in scores.projections.items() if p == 'k_proj'}" in code
    assert same(eval(code, {"tlora": tlora, "scores": it.sensitivity}), it.allocation)
    again = tlora.allocate(it.sensitivity, **it.options).edit(it.state.edits)
    assert same(again, it.allocation)


def test_code_says_no_more_than_is_asked_for():
    assert explorer().code() == "tlora.allocate(calibration.sensitivity, rank=4)"


def test_bases_of_other_modules_are_refused():
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj is not in the calibration"):
        viz.Workbench(small(), results.subspaces())


def test_excluding_part_after_part_is_said_in_the_shortest_way():
    it = explorer()
    it.leave_out(["layers.0.k_proj", "layers.1.k_proj"])
    assert it.options["exclude_modules"] == ["k_proj"]
    it.leave_out([name for name in it.names if it.sensitivity.layers[name] == 0])
    assert it.options["exclude_modules"] == ["k_proj", 0]
    it.release("layers.0.q_proj")
    assert it.options["exclude_modules"] == ["k_proj", "layers.0.down_proj"]


def test_no_rank_goes_beyond_the_bases():
    it = viz.Workbench(results.calibration().sensitivity, results.subspaces(), rank=4)
    most = results.subspaces().max_rank
    assert it.most == it.widget.about["most"] == it.options["max_rank"] == most
    it.set(rank=most - 1)
    assert max(it.allocation.ranks.values()) <= most
    for beyond in (most + 5, None, {it.names[0]: most + 5}):
        it.set(max_rank=beyond)
        assert max(it.allocation.ranks.values()) <= most
    for none in (0, {"nowhere": 3}):
        with pytest.raises((ValueError, KeyError)):
            it.set(max_rank=none)
    name = it.names[0]
    each = viz.Workbench(it.sensitivity, results.subspaces(), rank=2, max_rank={name: 1})
    assert each.allocation.ranks[name] == 1
    assert max(each.allocation.ranks.values()) <= most
    assert each.widget.shown["controls"]["max_rank"] is None  # not one number


def test_what_is_shown_is_what_is_trained():
    """A rank moved, a module left out and one edited: PEFT's layers have exactly those ranks."""
    it = viz.Workbench(results.calibration().sensitivity, results.subspaces(), rank=3)
    left_out, edited = it.names[0], it.names[-1]
    it.set(rank=4)
    it.leave_out(left_out)
    it.set_rank(edited, 7)
    model = results.base()
    adapted = tlora.attach(model, results.subspaces(), it.allocation)
    layers = {n: m for n, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    scalings = {name: layer.scaling["default"] for name, layer in layers.items()}
    try:
        assert {name: layer.lora_A["default"].weight.shape[0] for name, layer in layers.items()} == it.allocation.ranks
        assert scalings == pytest.approx(it.allocation.scalings)
        assert it.allocation.ranks[edited] == 7
        assert left_out not in layers
    finally:
        tlora.detach(adapted)


def test_pinned_ranks_of_an_explorer_are_its_own() -> None:
    sensitivity = results.sensitivity()
    pinned = {sensitivity.names[0]: 2}
    explorer = viz.Workbench(sensitivity, rank=4, pinned=pinned)
    explorer.options["pinned"].clear()
    assert explorer.state.pinned == pinned
