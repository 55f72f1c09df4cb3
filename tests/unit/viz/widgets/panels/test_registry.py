"""A panel is one class: once registered, it is in the workbench, its page and the report, and answers the browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import viz
from tests.helpers.reported import page_data, results_of, save
from tests.helpers.results import (
    activations,
    answer_table,
    attribution,
    calibration,
    effects,
    rescaling,
    run,
    subspaces,
)
from tlora.allocation.allocation import Allocation
from viz.widgets.panels import registry
from viz.widgets.panels.panel import Context, Panel
from viz.widgets.panels.parts import Part, chart, line, table, text
from viz.widgets.results import Results


class StepsPanel(Panel):
    """The losses of a run as a table and a chart, and one of them when the browser asks for it."""

    name, title = "steps", "Steps"
    stage = "training"
    about = "The loss at every step."
    needs = ("run",)
    answers = ("loss",)

    def parts(self) -> list[Part]:
        history = self.result.history
        curve = line("training loss", history["step"], history["loss"])
        axes = {"label": "step"}, {"label": "loss, nats"}
        return [table(history, "Losses", [("loss", "loss", str)]), chart("Losses", [curve], *axes)]

    def requests(self) -> dict[str, Any]:
        return {"loss": lambda step: self.show(loss={"step": step, "loss": self.result.history["loss"][step]})}

    def page_state(self, answers: Any) -> dict[str, Any]:
        return {"losses": self.result.history["loss"].tolist()}


class MostPanel(Panel):
    """The largest rank, which follows the map."""

    name, title = "most", "Most"
    follows_allocation = True

    def parts_of(self, allocation: Allocation) -> list[Part]:
        return [text(str(max(allocation.ranks.values())))]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PANELS", (*registry.PANELS, StepsPanel, MostPanel))


def bench() -> viz.Workbench:
    return viz.Workbench(calibration(), subspaces(), run=run(), rank=2)


def shown(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {panel["name"]: panel for panel in values["about"]["panels"]}


def losses(panel: dict[str, Any]) -> list[float]:
    rows, points = panel["parts"][0]["rows"], panel["parts"][1]["lines"][0]["points"]
    assert [float(row[0]) for row in rows] == pytest.approx([y for _, y in points], rel=1e-3)
    return [float(row[0]) for row in rows]


def test_it_is_in_the_workbench_the_page_and_the_report(tmp_path: Path) -> None:
    it, small = bench(), results_of("2 layers")
    for values, trained in (
        ({"about": it.widget.about}, run()),
        (page_data(it.page(tmp_path / "page.html")), run()),
        (page_data(viz.report(save(small, tmp_path / "adapter"))), small["run"]),
        (page_data(viz.report(save({"run": small["run"]}, tmp_path / "alone"))), small["run"]),
    ):
        panel = shown(values)["steps"]
        assert (panel["title"], panel["stage"], panel["about"]) == ("Steps", "training", "The loss at every step.")
        assert losses(panel) == trained.history["loss"].tolist()
    assert "steps" not in shown({"about": viz.Workbench(calibration(), rank=2).widget.about})


def test_it_answers_the_browser_and_a_page_holds_the_answers(tmp_path: Path) -> None:
    it, expected = bench(), run().history["loss"].tolist()
    assert it.widget.loss == {}
    it._answer(it.widget, {"call": "loss", "args": {"step": 1}, "id": 1}, [])
    assert it.widget.get_state("loss") == {"loss": {"step": 1, "loss": expected[1]}}
    assert page_data(it.page(tmp_path / "page.html"))["losses"] == expected


def test_one_that_follows_the_map_is_computed_while_it_is_open(tmp_path: Path) -> None:
    it = bench()
    it.set_rank(it.names[0], 5)
    assert it.widget.current["parts"] == {}
    it.widget.panel = "most"
    for rank in (5, 7):
        it.set_rank(it.names[0], rank)
        assert it.widget.current["parts"]["most"] == [text(str(max(it.allocation.ranks.values())))]
    assert page_data(it.page(tmp_path / "page.html"))["current"]["parts"]["most"] == it.widget.current["parts"]["most"]
    without_map = save({"run": results_of("2 layers")["run"]}, tmp_path / "alone")
    assert "most" not in shown(page_data(viz.report(without_map)))


def test_the_text_of_samples_is_in_no_panel_unless_it_may_be_shown() -> None:
    """Whatever panels there are: none needs to know the rule."""
    parts = {"activations": activations(), "answers": answer_table(), "attribution": attribution()}
    parts |= {"effects": effects()}
    results = Results(sensitivity=calibration().sensitivity, rescaling=rescaling(), run=run(), **parts)
    panels = {
        texts: registry.panel_values(registry.make_panels(Context(results, calibration().names, texts=texts)))
        for texts in (True, False)
    }
    words = [
        attribution().samples[0].prompt,
        answer_table().answers[2].request,
        "".join(effects().samples[0].tokens),
        *activations().tokens["input_ids"].texts,
    ]
    for word in (json.dumps(word)[1:-1] for word in words if len(word) > 3):
        assert word not in json.dumps(panels[False])
    names = {texts: {panel["name"] for panel in drawn} for texts, drawn in panels.items()}
    assert names[True] - names[False] == {"reads", "answers", "attribution"}
