"""A panel that is one class, as `docs/architecture.md` says, is drawn by the browser, in which nothing knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

import viz
from tests.helpers.jupyterlab import opened_file
from tests.helpers.results import calibration, run
from tlora.allocation.allocation import Allocation
from viz.widgets.panels import registry
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, chart, code, line, table, text

pytestmark = [pytest.mark.browser, pytest.mark.rest]


class StepsPanel(Panel):
    """A text, a table, a chart and code."""

    name, title, about = "steps", "Steps", "The loss at every step."
    stage = "training"
    needs = ("run",)

    def parts(self) -> list[Part]:
        history = self.result.history
        curve = line("training loss", history["step"], history["loss"])
        axes: Any = {"label": "step"}, {"label": "loss, nats"}
        losses = table(history, "Losses", [("step", "step", str), ("loss", "loss", str)])
        return [text("Four steps."), losses, chart("Losses by step", [curve], *axes), code("Again", "tlora.train()")]


class MostPanel(Panel):
    """The largest rank, which follows the map."""

    name, title = "most", "Most"
    follows_allocation = True

    def parts_of(self, allocation: Allocation) -> list[Part]:
        return [text(f"At most {max(allocation.ranks.values())}.")]


def test_its_parts_are_drawn_without_a_line_in_the_browser(
    chromium: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PANELS", (*registry.PANELS, StepsPanel, MostPanel))
    workbench = viz.Workbench(calibration(), run=run(), rank=2)
    most = max(workbench.allocation.ranks.values())
    with opened_file(chromium, workbench.page(tmp_path / "page.html"), "light") as page:
        page.locator("[data-panel=most] summary").click()
        expect(page.locator("[data-panel=most] p")).to_have_text(f"At most {most}.")
        page.locator("[data-stage=training]").click()
        panel = page.locator("[data-panel=steps]")
        panel.locator("summary").click()
        expect(panel.locator("summary")).to_have_text("Steps")
        expect(panel.locator("p")).to_have_text(["The loss at every step.", "Four steps."])
        rows = [row.split("\t") for row in panel.locator("table tbody").inner_text().splitlines()]
        assert [float(loss) for _, loss in rows] == run().history["loss"].tolist()
        assert panel.locator("svg.chart path.curve").get_attribute("d").count("L") == len(rows) - 1
        expect(panel.locator("pre")).to_have_text("tlora.train()")
