"""The panel "Side effects": its numbers are the results', and a page without texts has none of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import viz
from tests.helpers.reported import page_data, panel_names
from tests.helpers.results import calibration, effects, rescaling, subspaces
from viz.widgets.panels.effects import EffectsPanel
from viz.widgets.panels.panel import Context
from viz.widgets.results import Results

RESULTS = Results(effects=effects(), rescaling=rescaling())


def part(kind: str) -> dict[str, Any]:
    (found,) = [one for one in EffectsPanel(Context(RESULTS)).parts() if one["kind"] == kind]
    return json.loads(json.dumps(found))


def test_tokens_have_the_values_of_the_result_the_worst_text_first() -> None:
    found, shown = effects(), part("effects")["samples"]
    frame = found.to_frame()
    assert [one["set"] for one in shown] == frame["set"].tolist()
    tokens = found.tokens()
    assert [one["tokens"][at] for one in shown for at in one["positions"]] == tokens["token"].tolist()
    np.testing.assert_allclose(np.concatenate([one["base"] for one in shown]), tokens["base"], rtol=0.01)
    np.testing.assert_allclose(np.concatenate([one["rise"] for one in shown]), tokens["rise"], rtol=0.01)


def test_points_have_the_values_of_the_result() -> None:
    found, shown = rescaling(), part("rescaling")
    assert [point["label"] for point in shown["points"]] == [point.label for point in found.points]
    np.testing.assert_allclose([p["lost"] for p in shown["points"]], list(map(found.lost, found.points)), atol=1e-4)
    np.testing.assert_allclose(
        [p["task"] for p in shown["points"]], [found.loss(point, "task") for point in found.points], rtol=1e-3
    )
    assert shown["points"][shown["start"]]["label"] == "scale 1"
    for point, one in zip(shown["points"], found.points, strict=True):
        out = {name for name, target in found.targets.items() if f"layer {target.layer}" in point["without"]}
        assert (
            point["kind"] != "left out" or out == {name for name, factor in one.factors.items() if factor == 0} != set()
        )


def test_a_page_has_the_texts_if_they_are_asked_for(tmp_path) -> None:
    bench = viz.Workbench(calibration(), subspaces(), effects=effects(), rescaling=rescaling(), rank=2)
    word = effects().samples[0].tokens[-1]
    for texts, kinds in ((False, {"rescaling", "text"}), (True, {"effects", "rescaling", "text", "table"})):
        panels = {
            one["name"]: one for one in page_data(bench.page(tmp_path / "a.html", texts=texts))["about"]["panels"]
        }
        assert {one["kind"] for one in panels["effects"]["parts"]} == kinds
        assert (json.dumps(word)[1:-1] in json.dumps(panels["effects"])) == texts


@pytest.mark.parametrize("result", [effects, rescaling])
def test_a_report_on_the_result_alone_and_a_session(result: Any, tmp_path) -> None:
    assert panel_names(viz.report(result(), tmp_path / "page.html"))[-1:] == ["effects"]
    bench = viz.Workbench(calibration(), subspaces(), **{result.__name__: result()}, rank=2)
    again = viz.Workbench.load(bench.save(tmp_path / "session"))
    assert again.widget.about["panels"] == bench.widget.about["panels"]


def test_the_slider_is_above_the_texts_and_the_tables_are_below() -> None:
    kinds = [one["kind"] for one in EffectsPanel(Context(RESULTS)).parts()]
    assert kinds[:5] == ["text", "text", "rescaling", "text", "effects"]
    assert set(kinds[5:]) == {"table"}
