"""The notebooks in a real JupyterLab and a real browser: opened, run, their widgets used by key and mouse."""

from __future__ import annotations

import pytest

from tests.browser.conftest import NOTEBOOKS
from tests.browser.lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.packaged, pytest.mark.rest]

NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
DRIVEN = "4_sensitivity_and_allocation.ipynb"


def test_there_are_eight_notebooks() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_stored_pictures(lab: Lab, name: str) -> None:
    lab.open(name)
    pictures = lab.page.locator(".jp-Notebook .jp-OutputArea img")
    assert pictures.count() >= 2
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth > 200") for i in range(pictures.count()))
    assert not lab.said()


@pytest.mark.parametrize("name", [n if n == DRIVEN else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_all_cells_run(lab: Lab, name: str) -> None:
    lab.open(name)
    lab.run_all(600)
    assert not lab.said()
    if name == DRIVEN:
        explore(lab)


def explore(lab: Lab) -> None:
    """A slider moved by key and a module left out by key change what the next cell uses."""
    cell, use = lab.cell("viz.Workbench("), "chosen = workbench.allocation"
    cell.get_by_role("slider", name="Rank").press("ArrowRight")
    cell.get_by_text("rank=9").wait_for()
    cell.locator(".cell").first.click()
    lab.page.keyboard.press("x")
    cell.get_by_text("exclude_modules=").wait_for()
    lab.run(use)
    assert "rank=9" in lab.printed(use)
    assert "exclude_modules=" in lab.printed(use)


def test_the_monitor_stops_training(long_lab: Lab) -> None:
    """The button ends training early, and the cells after it go on with the run."""
    lab = long_lab
    lab.open("5_training.ipynb")
    lab.run_up_to("monitor = viz.TrainingMonitor(")
    cell = lab.cell("monitor = viz.TrainingMonitor(")
    stop = cell.get_by_role("button", name="Stop")
    stop.wait_for(timeout=120_000)
    lab.page.wait_for_function("button => !button.disabled", arg=stop.element_handle(), timeout=120_000)
    stop.click()
    cell.get_by_text("Watching took").wait_for(timeout=120_000)  # said when training is over
    lab.run("assert run.frozen_a")  # and that it was interrupted, long before its last step
    assert not lab.said()
