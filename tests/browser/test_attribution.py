"""The panel "Attribution": parts switched off by pointer and key, in a notebook and on a page without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import viz
from tests.helpers.bench import built
from tests.helpers.jupyterlab import opened_file
from tests.helpers.results import calibration, large_contributions, subspaces

pytestmark = [pytest.mark.browser, pytest.mark.rest]

BUILD = """
import copy, viz
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.results import base, calibration, large_contributions, subspaces
adapted = foreign(copy.deepcopy(base()))
workbench = viz.Workbench(
    calibration(), subspaces(), attribution=large_contributions(), adapted=adapted, task=task(), rank=2
)
workbench.display()
"""


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in both themes; any error of its script fails."""
    bench = viz.Workbench(calibration(), subspaces(), attribution=large_contributions(), rank=2)
    file: Path = bench.page(tmp_path_factory.mktemp("page") / "attribution.html", texts=True)
    with opened_file(chromium, file, request.param) as page:
        page.locator("[data-stage=answers]").click()
        yield page


TOP = """(() => {
    const [root, map] = [".attribution", ".attribution svg"].map((one) => document.querySelector(one));
    return map.getBoundingClientRect().top - root.getBoundingClientRect().top;
})()"""
"""Where the map begins in the panel, wherever the page is scrolled to."""


def cell(page: Any, k: int) -> Any:
    return page.locator(f".attribution .cell[data-k='{k}']")


def off(page: Any) -> list[int]:
    found = page.locator(".attribution .cell[aria-selected=true]").all()
    return sorted(int(one.get_attribute("data-k")) for one in found)


def test_in_a_notebook_the_kernel_switches_parts_off_and_takes_requests_apart(server: str, chromium: str) -> None:
    # first in this file: the other tests keep a browser open, and there can be one at a time
    with built(server, chromium, "attribution.ipynb", BUILD.strip()) as bench:
        page, finding = bench.page, bench.root.locator(".attribution .finding")
        bench.view("answers")
        names = large_contributions().names
        measured = next(names.index(name) for name in large_contributions().switches if name in names)
        before = page.evaluate(TOP)
        cell(page, measured).click()  # its cost is stored, its answer is not
        now = bench.root.locator(".attribution .written .now code")
        expect(now).not_to_have_text("…", timeout=30_000)
        assert page.evaluate(TOP) == before
        page.keyboard.press("Escape")
        cell(page, 1).click()
        cell(page, 2).click()
        expect(finding).to_contain_text("2 modules contributed")
        expect(finding).to_contain_text("leaving them out costs")
        expect(bench.root.locator(".attribution .written .now")).to_be_visible(timeout=30_000)
        page.keyboard.press("Escape")
        assert off(page) == []
        box = cell(page, 0).bounding_box()
        page.mouse.move(box["x"] + 8, box["y"] + 8)
        page.mouse.down()
        page.mouse.move(box["x"] + 8, box["y"] + 14, steps=3)
        page.mouse.up()
        expect(finding).to_contain_text("cutting it to rank 1 costs")
        bench.root.get_by_label("A request of your own").fill("w4 w9")
        bench.root.get_by_role("button", name="Take apart").click()
        select = bench.root.locator(".attribution select.sample")
        expect(select.locator("option")).to_have_count(3, timeout=60_000)
        expect(select).to_have_value("2")
        cell(page, 3).click()
        expect(finding).to_contain_text("leaving it out costs")


def test_a_token_and_what_was_stored_can_be_chosen(page: Any) -> None:
    cards, finding = page.locator(".attribution .card .token"), page.locator(".attribution .finding")
    found = large_contributions()
    tokens = found.tokens().query("sample == 0")
    assert cards.all_text_contents() == tokens["token"].tolist()
    cards.first.click()
    by_module = found.samples[0].by_module[0, 0]
    for k, value in enumerate(by_module.tolist()):
        label = cell(page, k).get_attribute("aria-label").replace("\u2212", "-")
        assert float(label.split("contributed ")[1].split(" ")[0]) == pytest.approx(value, abs=0.006)
    cards.first.click()
    cell(page, 0).click()
    costs = found.samples[0].adapter[0] - found.samples[0].switched[found.names[0]][0]
    assert f"costs {float(costs.sum()):.2f}".replace("-", "\u2212") in finding.text_content()
    for k, name in enumerate(found.names):
        if name in found.samples[0].switched:
            page.keyboard.press("Escape")
            cell(page, k).click()
            cost = float((found.samples[0].adapter[0] - found.samples[0].switched[name][0]).sum())
            assert ("likelier" in finding.text_content()) == (cost < -0.005), (name, cost)
    page.keyboard.press("Escape")
    cell(page, 0).click()
    page.locator(".attribution [data-column='1']").click()
    expect(finding).to_contain_text("Layer 1 contributed")
    page.locator(".attribution [data-row='0']").click()
    expect(finding).to_contain_text("was not measured")
    page.get_by_role("button", name="Switch all on").click()
    assert off(page) == []


def test_keys_move_and_switch(page: Any) -> None:
    cell(page, 0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    moved = int(page.locator(".attribution .cell:focus").get_attribute("data-k"))
    assert off(page) == [moved] != [0]
    page.keyboard.press("Enter")
    assert off(page) == []
    page.keyboard.press("Control+ ")
    assert len(off(page)) == 2
    page.keyboard.press("Escape")
    assert off(page) == []
    page.locator(".attribution .card button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".attribution .card button:focus")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")


def test_axe_finds_nothing_serious(page: Any) -> None:
    cell(page, 0).click()
    found = Axe().run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
