"""The panel "Answers" on a page without a kernel: sorted, filtered, opened by pointer and key, and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import viz
from tests.helpers.jupyterlab import opened, opened_file
from tests.helpers.results import many_answers

pytestmark = [pytest.mark.browser, pytest.mark.rest]


BUILD = """
import viz
from tests.helpers.results import many_answers
viz.show(many_answers())
"""


def test_a_notebook_shows_the_panel_alone(server: str, chromium: str) -> None:
    # first in this file: the other tests keep a browser open, and there can be one at a time
    with opened(server, chromium) as lab:
        lab.write("answers.ipynb", BUILD.strip())
        lab.run("viz.show", 240)
        panel = lab.page.locator(".tlora")
        expect(panel.locator("#answers .finding")).to_have_text(f"{many_answers().headline}.")
        panel.get_by_role("button", name="request 9", exact=True).click()
        expect(panel.locator(".turn")).to_have_count(4)


LIVE = """
import copy, tlora, viz
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.results import base
adapted = foreign(copy.deepcopy(base()))
viz.show(tlora.compare_answers(adapted, task(), limit=3, progress=False), adapted=adapted, task=task())
"""


def test_in_a_notebook_the_kernel_takes_rows_and_requests_apart_in_place(server: str, chromium: str) -> None:
    with opened(server, chromium) as lab:
        lab.write("live.ipynb", LIVE.strip())
        lab.run("viz.show", 240)
        panel = lab.page.locator(".tlora #answers")
        opener = panel.locator("[data-row='2']")
        opener.click()
        gained = panel.locator(".gained")
        expect(gained).not_to_contain_text("--rows")
        gained.get_by_role("button", name="Take apart").focus()
        lab.page.keyboard.press("Enter")
        expect(gained.locator(".chip").first).to_be_visible(timeout=120_000)
        expect(gained.locator(".modules tr")).not_to_have_count(0)
        expect(gained.get_by_role("button")).to_have_count(0)
        panel.get_by_label("A request of your own").fill("w4 w9")
        panel.locator("form").get_by_role("button", name="Take apart").click()
        own = panel.locator(".answers-row").first
        expect(own.locator(".row")).to_have_text("own 1", timeout=120_000)
        expect(panel.locator(".turns").first.locator(".said").first).to_have_text("w4 w9")
        expect(panel.locator(".gained")).to_have_count(2)


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in both themes; any error of its script fails."""
    file = viz.report(many_answers(), tmp_path_factory.mktemp("page") / "answers.html")
    with opened_file(chromium, file, request.param) as page:
        yield page


def numbers(page: Any) -> list[int]:
    return [int(text) for text in page.locator("#answers .answers-row > .row").all_text_contents()]


def test_rows_are_sorted_filtered_and_opened(page: Any) -> None:
    frame, panel = many_answers().to_frame(), page.locator("#answers")
    expect(panel.locator(".finding")).to_have_text(f"{many_answers().headline}.")
    panel.get_by_role("button", name="Show 4 more").click()
    assert numbers(page) == many_answers().reading_order
    gain = panel.get_by_role("button", name="gain, nats", exact=True)
    gain.click()
    gain.click()
    assert numbers(page) == frame.sort_values("gain", ascending=False)["row"].tolist()
    expect(panel.get_by_role("columnheader", name="gain, nats")).to_have_attribute("aria-sort", "descending")
    panel.get_by_role("button", name="newly right").click()
    newly_right = sorted(many_answers().newly_right, key=lambda row: -frame["gain"][row])
    assert numbers(page) == newly_right
    opener = panel.get_by_role("button", name=f"request {newly_right[0]}", exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    expect(opener).to_have_attribute("aria-expanded", "true")
    row = frame.loc[newly_right[0]]
    said = panel.locator(".turn .said")
    expect(said).to_have_text([row["request"], row["base"], row["adapter"], row["reference"]])
    expect(panel.locator(".gained")).to_contain_text(f"--rows {newly_right[0]}")
    page.keyboard.press("Enter")
    expect(said).to_have_count(0)
    panel.get_by_role("button", name="all 12").click()
    gain.click()
    panel.locator(".answers-row", has_text="request 1").first.click()
    expect(panel.locator(".chip")).to_have_count(len(many_answers().attribution.samples[0].positions))


def test_a_phone_shows_cards_and_nothing_scrolls_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("#answers .answers-row").first.bounding_box()["width"] < 380
    assert page.evaluate(
        "[...document.querySelectorAll('#answers *')].every((one) => one.getBoundingClientRect().right <= innerWidth)"
    )
    expect(page.get_by_role("table", name="Answers")).to_be_visible()
    expect(page.locator("#answers").get_by_role("row").nth(1)).to_be_visible()


def test_axe_finds_nothing_serious(page: Any) -> None:
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        found = Axe().run(page).response["violations"]
        assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
