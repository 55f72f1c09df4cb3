"""The built site in a real browser: narrow and wide, light and dark, usable by everybody, searched, offline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.helpers.jupyterlab import launched

pytestmark = [pytest.mark.browser, pytest.mark.rest]

PAGES = (
    "index", "concepts/allocation", "notebooks/1_quickstart", "gallery/index", "results/comparison",
    "reference/tlora.calibrate",
)  # fmt: skip
"""One of each kind."""
ASKED = {
    "rank_pattern from sensitivity": "faq/ranks",
    "which target modules": "howto/target_modules",
    "what rank do I need": "howto/rank",
    "shrink adapter": "faq/ranks",
    "fit in memory": "howto/memory",
    "padding counted": "faq/calibration",
    "vLLM wrong scale": "howto/serving",
    "cell run twice": "faq/training",
    "eval_loss missing": "faq/training",
    "quantized base": "howto/memory",
    "how many samples": "howto/samples",
    "chat template tokens dominate": "concepts/covariance",
}
"""What users of neighbouring tools looked for, and the page that answers it."""
FOUND = "[...document.querySelectorAll('#search-results ul.search > li > a')].map((a) => a.getAttribute('href'))"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with launched(chromium) as it:
        yield it


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_pages_fit_can_be_used_by_everybody_and_ask_nobody(
    browser: Browser, address: str, width: int, scheme: Any, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    wrong = {}
    for name in PAGES:
        page.goto(f"{address}/{name}.html")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=tmp_path / f"{name.replace('/', '_')}.png")
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wrong[name] = ["wider than the window"]
        wrong[name] = wrong.get(name, []) + serious(page)
    context.close()
    assert {name: found for name, found in wrong.items() if found} == {}
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert said == []


def test_the_workbench_of_the_first_page_works(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    workbench = page.frame_locator(".workbench")
    workbench.get_by_text("Rule and budget").click()
    workbench.get_by_label("Temperature").press("Home")
    workbench.get_by_text("temperature=0.0").wait_for()
    workbench.get_by_role("tab", name="Sensitivity").click()
    workbench.locator(".cell[data-k='8']").click()
    assert "layer 1 k_proj" in workbench.locator(".side").inner_text()
    workbench.locator("[data-stage=directions]").click()
    workbench.locator("[data-panel=reads] summary").click()
    assert "layer 1 k_proj" in workbench.locator("[data-panel=reads]").inner_text()
    answer = page.frame_locator(".answer")
    answer.get_by_role("button", name="fan", exact=True).click()
    answer.get_by_text("contributed to “fan”").wait_for()
    page.locator(".theme-toggle:visible").first.click()
    assert page.evaluate("document.body.dataset.theme") == "dark"
    assert workbench.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(17, 17, 17)"
    page.close()


def test_cells_that_are_collapsed_in_jupyterlab_are_collapsed(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/notebooks/1_quickstart.html")
    imports = page.locator("details", has_text="import tempfile")
    assert not imports.locator("pre").is_visible()
    imports.locator("summary").click()
    assert imports.locator("pre").is_visible()
    page.close()


@pytest.mark.parametrize(("question", "answer"), ASKED.items())
def test_what_users_ask_is_among_the_first_three_that_are_found(
    browser: Browser, address: str, question: str, answer: str
) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q={quote(question)}")
    page.locator("#search-results ul.search > li > a").first.wait_for()
    assert page.locator("#search-results > h2").is_hidden()  # it says "Searching" until all pages have been fetched
    page.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('finished')")
    assert answer in [link.partition(".html")[0] for link in page.evaluate(FOUND)[:3]]
    page.close()
