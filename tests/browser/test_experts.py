"""The panel "Experts" on a page without a kernel: its map follows a rank that is changed above it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import tlora
import viz
from tests.helpers.experts import routed
from tests.helpers.jupyterlab import opened_file

pytestmark = [pytest.mark.browser, pytest.mark.rest]


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in both themes; any error of its script fails."""
    bench = viz.Workbench(routed(), expert_use=tlora.expert_use(routed()), rank=2)
    file = bench.page(tmp_path_factory.mktemp("page") / "experts.html")
    with opened_file(chromium, file, request.param) as page:
        yield page


def test_the_map_says_the_numbers_of_an_expert_and_follows_the_ranks(page: Any) -> None:
    frame, panel = tlora.expert_use(routed()).to_frame(), page.locator("[data-panel=experts]")
    panel.locator("summary").first.click()
    cells, said = panel.locator(".chart rect"), panel.locator(".experts .finding")
    expect(cells).to_have_count(len(frame))
    for n in (0, 5):
        cells.nth(n).hover()
        row = frame.iloc[n]
        expect(said).to_contain_text(f"Layer {row['layer']} expert {row['expert']}: tokens {row['tokens']},")
    panel.get_by_role("button", name="Rank").click()
    before = int(re.search(r"rank (\d+)", said.text_content())[1])
    cell = page.locator(".cell[aria-label*='layer 1 experts.down_proj']")
    cell.click()
    cell.press("+")
    expect(said).to_contain_text(f"rank {before + 1}.")


def test_axe_finds_nothing_serious(page: Any) -> None:
    found = Axe().run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
