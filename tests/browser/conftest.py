"""A real JupyterLab with the project's notebooks, and a real browser in front of it."""

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
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.browser.lab import Lab, launched

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one JupyterLab for all tests."""
    with served(tmp_path_factory.mktemp("lab")) as address:
        yield address


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


@pytest.fixture
def lab(server: str, chromium: str) -> Iterator[Lab]:
    """JupyterLab in the browser, with notebooks that train for a few steps."""
    with opened(server, chromium) as page:
        yield page
