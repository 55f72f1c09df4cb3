"""The notebooks in a real JupyterLab and a real browser: opened, run, their widgets used by key and mouse."""

from __future__ import annotations

import pytest

from tests.helpers.jupyterlab import NOTEBOOKS, Lab

pytestmark = [pytest.mark.browser, pytest.mark.packaged, pytest.mark.rest]

NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_stored_pictures(lab: Lab, name: str) -> None:
    lab.open(name)
    pictures = lab.page.locator(".jp-Notebook .jp-OutputArea img")
    assert pictures.count() >= 2
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth > 200") for i in range(pictures.count()))
    assert not lab.said()


def test_the_workbench_of_a_notebook_changes_what_the_next_cell_uses(lab: Lab) -> None:
    """A slider moved by key, and a module left out by key."""
    lab.open("4_sensitivity_and_allocation.ipynb")
    lab.run_all(600)
    assert not lab.said()
    cell, use = lab.cell("viz.Workbench("), "chosen = workbench.allocation"
    cell.get_by_text("Rule and budget").click()
    cell.get_by_role("slider", name="Rank").press("ArrowRight")
    cell.get_by_text("rank=9").first.wait_for()
    cell.locator(".cell").first.click()
    lab.page.keyboard.press("x")
    cell.get_by_text("exclude_modules=").first.wait_for()
    lab.run(use)
    assert "rank=9" in lab.printed(use)
    assert "exclude_modules=" in lab.printed(use)
