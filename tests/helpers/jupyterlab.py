"""A real JupyterLab and a browser before it, and what a person does there: open a notebook, run it, press a button."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const cells = panel.content.model.cells;
    const all = [];
    for (let i = 0; i < cells.length; i++) all.push(cells.get(i).toJSON());
    return {cells: all, status: panel.sessionContext.session?.kernel?.status ?? "none"};
}"""

SAVE = """([name, sources]) => window.jupyterapp.serviceManager.contents.save(name, {
    type: "notebook", format: "json", content: {
        nbformat: 4, nbformat_minor: 5,
        metadata: {kernelspec: {name: "python3", display_name: "Python 3", language: "python"}},
        cells: sources.map((source, i) => ({
            cell_type: "code", id: `cell-${i}`, metadata: {}, source, outputs: [], execution_count: null})),
    }}).then(() => null)"""

READY = """(name) => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.path === name && panel.context.isReady
        && panel.sessionContext.session?.kernel?.status === "idle";
}"""

# Widgets answer on a thread of their own, after which the kernel calls itself idle while a cell still runs.
RUN = """(index) => window.jupyterapp.shell.currentWidget.content.model.cells.get(index).executionCount !== null"""

DONE = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
    for (let i = 0; i < cells.length; i++) {
        const cell = cells.get(i);
        if (cell.type !== "code" || !cell.sharedModel.source.trim()) continue;
        if (cell.outputs.toJSON().some(output => output.output_type === "error")) return true;
        if (cell.executionCount === null) return false;
    }
    return true;
}"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def launched(chromium: str) -> Iterator[Any]:
    """A browser of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened_file(chromium: str, file: Path, color_scheme: Any) -> Iterator[Any]:
    """A page in the browser; any error of its script fails."""
    with launched(chromium) as browser:
        page, errors = browser.new_page(color_scheme=color_scheme), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(file.as_uri())
        yield page
    assert not errors


class Lab:
    """One page with JupyterLab.

    Parameters
    ----------
    page : playwright.sync_api.Page
        An empty page.
    address : str
        Where the server listens.

    Attributes
    ----------
    errors : list of str
        What the page has put on its console as an error, or thrown.
    """

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        page.on("console", lambda message: self._heard(message.type, message.text, str(message.location)))
        page.on("pageerror", lambda error: self.errors.append(f"thrown: {error}"))

    def _heard(self, kind: str, text: str, where: str) -> None:
        if kind == "error":
            self.errors.append(f"{text} ({where})")

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.page.goto(f"{self.address}/lab/tree/{name}?reset", timeout=120_000)
        self.page.wait_for_selector(".jp-Notebook", timeout=120_000)
        self.page.wait_for_function(READY, arg=name, timeout=120_000)

    def write(self, name: str, *sources: str) -> None:
        """Make a notebook of these code cells, and open it."""
        self.page.goto(f"{self.address}/lab?reset", timeout=120_000)
        self.page.wait_for_function("window.jupyterapp?.serviceManager?.isReady", timeout=120_000)
        self.page.evaluate(SAVE, [name, list(sources)])
        self.open(name)

    def run_all(self, seconds: float = 300) -> None:
        """Run all cells, by the menu, and wait for the last one; an error ends the wait."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        for item in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=item, exact=True).click()
        self.page.wait_for_function(DONE, timeout=1000 * seconds)

    def cells(self) -> list[dict[str, Any]]:
        """Cells as they would be saved."""
        state: dict[str, Any] = self.page.evaluate(STATE)
        return list(state["cells"])

    def said(self) -> list[str]:
        """Errors and what was written to stderr, of all cells, less what bitsandbytes says when it is imported."""
        found = []
        for cell in self.cells():
            for output in cell.get("outputs", []):
                if output["output_type"] == "error":
                    found.append(f"{output['ename']}: {output['evalue']}")
                elif output.get("name") == "stderr":
                    lines = "".join(output["text"]).splitlines(keepends=True)
                    text = "".join(line for line in lines if "gemm_4bit_forward from kernels-community" not in line)
                    found += [text] if text else []
        return found

    def _index(self, text: str) -> int:
        found = [i for i, c in enumerate(self.cells()) if c["cell_type"] == "code" and text in "".join(c["source"])]
        assert len(found) == 1, f"{len(found)} cells with {text!r}"
        return found[0]

    def cell(self, text: str) -> Any:
        """The code cell with this text in its source."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(self._index(text))

    def printed(self, text: str) -> str:
        """What the cell with this text has printed."""
        return "".join("".join(o.get("text", "")) for o in self.cells()[self._index(text)]["outputs"])

    def run(self, text: str, seconds: float = 60) -> None:
        """Run the one cell with this text in its source."""
        self.cell(text).locator(".jp-InputArea").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(500)
        self.page.wait_for_function(RUN, arg=self._index(text), timeout=1000 * seconds)

    def close(self) -> None:
        """Shut the kernel down."""
        self.page.evaluate("window.jupyterapp?.serviceManager?.sessions?.shutdownAll()")


NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # all cells in the page at once, not only those in view
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Address of a JupyterLab with copies of the notebooks, which train for a few steps, and settings of its own."""
    shutil.copytree(NOTEBOOKS, home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    settings = home / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    port = free_port()
    own = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "OMP_NUM_THREADS": "1", "TLORA_NOTEBOOK_STEPS": "6"}
    own |= {"PYTHONPATH": str(NOTEBOOKS.parent)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={home / 'notebooks'}", f"--LabApp.app_settings_dir={settings}"]
    command += [f"--LabApp.user_settings_dir={home / 'user'}", f"--LabApp.workspaces_dir={home / 'workspaces'}"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, home / "log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            urlopen(f"{address}/api/status", timeout=5).close()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@contextmanager
def opened(address: str, chromium: str) -> Iterator[Lab]:
    """JupyterLab in the browser; an error where the page says one on its console."""
    with launched(chromium) as browser:
        lab = Lab(browser.new_page(viewport={"width": 1280, "height": 1000}), address)
        try:
            yield lab
            assert not lab.errors, "\n".join(lab.errors)
        finally:
            lab.close()
