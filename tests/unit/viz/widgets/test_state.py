"""A state is the arguments of `tlora.allocate`, in the shortest line of Python; presets change it."""

from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer

import tlora
import viz
from tests.helpers import results
from tests.helpers.pictured import sensitivity as pictured
from tests.helpers.results import same
from tests.helpers.sensitivities import sensitivity
from viz.widgets.results import Results
from viz.widgets.state import allocate_state, allocation_code, preset_modules, state_from_allocation

SCORES = [8.0, 1.0, 3.0, 4.0, 2.0, 6.0]


def small() -> Any:
    """Six modules: q_proj, k_proj and down_proj of two layers."""
    return sensitivity(SCORES)


def workbench(**options: Any) -> viz.Workbench:
    return viz.Workbench(small(), rank=4, **options)


def test_code_makes_the_same_allocation():
    it = viz.Workbench(small(), rank=4, alpha=8, adapt_scales=False)
    it.set(temperature=0.7, pinned={"layers.0.k_proj": 2, "layers.1.k_proj": 2})
    it.leave_out("layers.0.down_proj")
    it.set_rank("layers.1.down_proj", 8)
    code = it.code("scores")
    assert "\n" not in code
    assert "pinned={n: 2 for n, p in scores.projections.items() if p == 'k_proj'}" in code
    assert same(eval(code, {"tlora": tlora, "scores": it.sensitivity}), it.allocation)
    again = tlora.allocate(it.sensitivity, **it.options).edit(it.state.edits)
    assert same(again, it.allocation)


def captured(**options: Any) -> tuple[Any, Any, Any]:
    """A calibration, its directions, and the allocation by what they capture."""
    calibration = results.calibration()
    subspaces = tlora.task_subspaces(results.base(), calibration, max_rank=8, kind="g", progress=False)
    options |= {"by": "captured", "subspaces": subspaces}
    return calibration, subspaces, tlora.allocate(calibration.sensitivity, rank=2, **options)


def test_ranks_by_captured_gradient_are_those_of_the_kept_directions():
    calibration, subspaces, allocation = captured(adapt_scales=False, min_rank=0, exclude_modules=["q_proj"])
    state = state_from_allocation(allocation)
    assert same(allocate_state(calibration.sensitivity, state), allocation)
    code = allocation_code(calibration.sensitivity, state)
    assert same(eval(code, {"tlora": tlora, "calibration": calibration, "allocation": allocation}), allocation)
    it = viz.Workbench(calibration, subspaces, rank=2, by="captured", adapt_scales=False)
    assert it.widget.current["controls"]["temperature"] is None  # it would change nothing
    assert same(eval(it.code(), {"tlora": tlora, "calibration": calibration, "subspaces": subspaces}), it.allocation)


def test_a_workbench_goes_to_ranks_by_gradient_and_back_and_keeps_what_they_read(tmp_path: Path) -> None:
    calibration, subspaces, allocation = captured()
    assert "captured" not in viz.Workbench(calibration).widget.about["presets"]
    it = viz.Workbench.from_results(Results(sensitivity=calibration.sensitivity, allocation=allocation))
    assert same(it.allocation, allocation)
    assert set(it.widget.current["reasons"]) >= {"captured"}
    assert it.widget.current["message"] == ""
    it.preset("by score")
    assert it.allocation.ranks == tlora.allocate(calibration.sensitivity, rank=2).ranks
    it.keep()
    it.preset("captured")
    it._answer(it.widget, {"call": "resample"}, [])  # scores are resampled, which decide nothing here
    assert (it.widget.current["message"], it.widget.resampled) == ("", [])
    options = {"by": "captured", "subspaces": subspaces, "budget": "parameters", "adapt_scales": False}
    expected = tlora.allocate(calibration.sensitivity, rank=2, **options)
    again = viz.Workbench.load(it.save(tmp_path / "session"))
    for one in (it, again):
        assert (one.allocation.ranks, one.allocation.scalings) == (expected.ranks, expected.scalings)
        one.set(rank=3)
    assert again.allocation.ranks == it.allocation.ranks


def test_excluding_part_after_part_is_said_in_the_shortest_way():
    it = workbench()
    it.leave_out(["layers.0.k_proj", "layers.1.k_proj"])
    assert it.options["exclude_modules"] == ["k_proj"]
    it.leave_out([name for name in it.names if it.sensitivity.layers[name] == 0])
    assert it.options["exclude_modules"] == ["k_proj", 0]
    it.release("layers.0.q_proj")
    assert it.options["exclude_modules"] == ["k_proj", "layers.0.down_proj"]


def test_options_that_only_the_edits_make_possible_are_refused():
    """Of 24 ranks, a floor of 5 needs 30 without the two edits: `tlora.allocate` in the line of Python refuses it."""
    it = workbench()
    it.set_rank(["layers.0.k_proj", "layers.1.k_proj"], 1)
    with pytest.raises(ValueError, match="min_rank"):
        it.set(min_rank=5)
    it.set(min_rank=4)
    assert same(eval(it.code("scores"), {"tlora": tlora, "scores": it.sensitivity}), it.allocation)


def test_no_rank_goes_beyond_the_bases():
    it = viz.Workbench(results.calibration().sensitivity, results.subspaces(), rank=4)
    most = results.subspaces().max_rank
    assert it.most == it.widget.about["most"] == it.options["max_rank"] == most
    it.set(rank=most - 1)
    assert max(it.allocation.ranks.values()) <= most
    for beyond in (most + 5, None, {it.names[0]: most + 5}):
        it.set(max_rank=beyond)
        assert max(it.allocation.ranks.values()) <= most
    name = it.names[0]
    each = viz.Workbench(it.sensitivity, results.subspaces(), rank=2, max_rank={name: 1})
    assert each.allocation.ranks[name] == 1
    assert max(each.allocation.ranks.values()) <= most
    assert each.widget.current["controls"]["max_rank"] is None  # not one number


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


def test_the_state_of_an_allocation_gives_it_back() -> None:
    options = {"alpha": 16, "temperature": 0.5, "pinned": {"layers.0.k_proj": 3}, "exclude_modules": [1]}
    allocation = tlora.allocate(small(), rank=4, **options).edit({"layers.0.q_proj": 5})
    assert same(allocate_state(small(), state_from_allocation(allocation)), allocation)


@pytest.mark.parametrize("name", ["uniform", "q and v", "attention", "by score", "as published"])
def test_presets(name: str) -> None:
    it = viz.Workbench(pictured("30 layers"), max_rank=40, min_rank=2)
    it.set_rank(it.names[0], 30)
    it.preset(name)
    ranks, roles = it.allocation.ranks, it.sensitivity.projections
    bounds = {"min_rank": 2, "max_rank": 40}
    expected: dict[str, Any] = {
        "uniform": {**bounds, "temperature": 0},
        "q and v": {**bounds, "temperature": 0, "exclude_modules": set(roles.values()) - {"q_proj", "v_proj"}},
        "attention": {**bounds, "exclude_modules": ["gate_proj", "up_proj", "down_proj"]},
        "by score": bounds,
        "as published": {},
    }[name]
    assert ranks == tlora.allocate(it.sensitivity, rank=8, **expected).ranks
    assert it.state.edits == {}


def test_presets_without_effect_are_not_offered() -> None:
    it = viz.Workbench(pictured("one projection"))
    assert list(it.widget.about["presets"]) == ["as published", "uniform", "by score"]
    assert "'tlora-paper'" in it.widget.about["presets"]["as published"]  # whose directions a preset does not compute
    with pytest.raises(KeyError, match="no preset 'q and v'"):
        it.preset("q and v")
    bert = pictured("BERT")
    assert preset_modules("q and v", bert) == [n for n in bert.names if n.endswith(("query", "value"))]
