"""The panel "Experts": its numbers are the results', in the workbench, on its page and in the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.experts import routed
from tests.helpers.pictured import expert_use
from tests.helpers.reported import page_data, panel_names
from tlora.calibration.expert_use import ExpertUse
from viz.widgets.panels.experts import ExpertsPanel, routing
from viz.widgets.panels.panel import Context
from viz.widgets.results import Results


def part(use: ExpertUse, names: list[str] | None = None) -> dict[str, Any]:
    (found,) = [
        one for one in ExpertsPanel(Context(Results(expert_use=use), names or [])).parts() if one["kind"] == "experts"
    ]
    return found


@pytest.mark.parametrize("other", [False, True])
def test_each_expert_has_the_values_of_the_result(other: bool) -> None:
    use = expert_use(layers=3, experts=5, other=other)
    frame, found = use.to_frame(), part(use)
    assert [found["layers"][place] for place in found["column"]] == frame["layer"].tolist()
    assert found["expert"] == frame["expert"].tolist()
    shown = {measure["name"]: measure for measure in found["measures"]}
    assert shown["tokens"]["values"] == frame["tokens"].tolist()
    np.testing.assert_allclose(shown["work"]["values"], frame["share"], rtol=1e-3)
    squared = frame["squared_gradient"] / frame["squared_gradient"].sum()
    np.testing.assert_allclose(shown["squared gradient"]["values"], squared, rtol=1e-3)
    assert ("compared with code" in shown) == other
    if other:
        for name, column in (("values", "difference"), ("low", "low"), ("high", "high")):
            np.testing.assert_allclose(shown["compared with code"][name], frame[column], rtol=1e-3)


def test_without_fisher_there_is_no_squared_gradient() -> None:
    use = expert_use()
    unknown = dataclasses.replace(use, squared_gradient=use.squared_gradient * float("nan"))
    assert "squared gradient" not in [measure["name"] for measure in part(unknown)["measures"]]


def test_the_sentence_says_who_got_most_tokens_and_who_none_or_few() -> None:
    frame = expert_use(layers=2, experts=4).to_frame()
    assert routing(frame.assign(tokens=[0, 0, 90, 15, 16, 1, 0, 99])) == (
        "Layer 1 expert 3 got the most tokens, 99. 3 experts got none: directions come from the whole layer there. "
        "2 experts got 1 to 15, fewer than the 16 that each borrows from its layer."
    )
    assert routing(frame.assign(tokens=70)) == "8 experts got the most tokens, 70 each. Every expert got at least 16."


def test_ranks_come_from_the_parameters_that_hold_the_experts(tmp_path: Path) -> None:
    use = tlora.expert_use(routed())
    bench = viz.Workbench(routed(), expert_use=use, rank=2)
    found = part(use, bench.names)
    assert [[bench.names[k] for k in modules] for modules in found["parameters"]] == [
        [f"model.layers.{layer}.mlp.experts.{key}" for key in ("gate_up_proj", "down_proj")] for layer in (0, 1)
    ]
    shown = {"workbench": bench.widget.about, "page": page_data(bench.page(tmp_path / "page.html"))["about"]}
    for about in shown.values():
        assert found in next(panel for panel in about["panels"] if panel["name"] == "experts")["parts"]
    again = viz.Workbench.load(bench.save(tmp_path / "session"))
    assert again.widget.about["panels"] == bench.widget.about["panels"]


def test_a_report_on_the_use_alone(tmp_path: Path) -> None:
    assert panel_names(viz.report(expert_use(), tmp_path / "page.html"))[-1:] == ["experts"]


def test_the_use_of_another_mixture_is_refused() -> None:
    for other in (expert_use(), tlora.expert_use(routed(experts=6))):
        with pytest.raises(ValueError, match=r"expert_use is of another model: .*\[\d\] is not in the calibration"):
            viz.Workbench(routed(), expert_use=other, rank=2)
