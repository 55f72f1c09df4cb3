"""The workbench in marimo, which uv fetches: a drag, an answer taken apart, a training of two arms that is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from playwright.sync_api import expect

from tests.helpers.jupyterlab import free_port, launched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
APP = """
import marimo
app = marimo.App()

@app.cell
def _():
    import copy
    import marimo as mo
    import viz
    from tests.helpers.foreign import foreign
    from tests.helpers.jobs import task
    from tests.helpers.results import base, calibration, large_contributions, subspaces
    parts = {"attribution": large_contributions(), "adapted": foreign(copy.deepcopy(base())), "task": task()}
    workbench = viz.Workbench(calibration(), subspaces(), model=copy.deepcopy(base()), rank=2, **parts)
    mo.ui.anywidget(workbench.widget)
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where marimo serves the app."""
    file, port = tmp_path_factory.mktemp("marimo") / "app.py", free_port()
    file.write_text(APP)
    uv = [str(Path(sys.executable).with_name("uv")), "run", "--quiet", "--no-project", "--active", "--with", "marimo"]
    options = ["--headless", "--no-token", "--port", str(port)]
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([*uv, "marimo", "run", str(file), *options], env=environment, cwd=ROOT)
    try:
        yield answering(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait()


def answering(address: str, server: subprocess.Popen[bytes]) -> str:
    """The address, once somebody answers there."""
    for _ in range(240):
        assert server.poll() is None, "marimo could not be fetched, or did not start"
        try:
            urlopen(address, timeout=5).close()
        except (URLError, OSError):
            time.sleep(1)
        else:
            return address
    raise TimeoutError(f"no answer from {address}")


@pytest.fixture
def page(address: str, chromium: str) -> Iterator[Any]:
    """The app in a browser; any error of a script fails."""
    with launched(chromium) as browser:
        page, errors = browser.new_page(viewport={"width": 1440, "height": 1000}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator(".tlora .cell").first.wait_for(timeout=180_000)
        yield page
        assert not errors


def test_a_drag_an_answer_and_a_stop(page: Any) -> None:
    cell = page.locator(".tlora .cell").first
    rank = cell.locator("text")
    before = rank.text_content()
    box = cell.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 40, steps=8)
    page.mouse.up()
    expect(rank).not_to_have_text(before)
    expect(page.locator(".tlora").first).to_contain_text(f"q_proj': {rank.text_content()}}})")

    page.locator(".rail [data-stage=answers]").click()
    page.locator(".attribution .cell").first.click()
    expect(page.locator(".part.attribution")).to_contain_text("now answers:", timeout=60_000)

    page.locator(".rail [data-stage=allocation]").click()
    page.get_by_role("button", name="Train both").click()
    stop = page.get_by_role("button", name="Stop kept")
    expect(stop).to_be_enabled(timeout=60_000)
    stop.click()
    expect(stop).to_be_disabled(timeout=60_000)
