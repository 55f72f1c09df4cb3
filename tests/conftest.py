"""Fixtures that every test may use."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.helpers.shapes  # noqa: F401  (the hook finds it by name)

# Shapes are checked at every call while tests run, and cost nothing otherwise. Before any import of tlora.
install_import_hook("tlora", "tests.helpers.shapes.check_shapes")

# Their fixtures, after the hook.
pytest_plugins = [
    "tests.helpers.adapted",
    "tests.helpers.commands",
    "tests.helpers.other_device",
]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``posix`` on other systems."""
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("needs a POSIX system")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome; without one the browser tests are skipped, unless they are required."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    missing = "no Chromium or Chrome on the PATH: `apt install chromium` installs one on Debian"
    if os.environ.get("TLORA_BROWSER") == "required":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, as it does for a person; what a shell starts in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def site() -> Path:
    """Folder of the built site: as `make docs` left it, or built here."""
    root = Path(__file__).parents[1]
    html = root / "docs" / "_build" / "html"
    if not (html / "search.html").is_file():
        command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", str(html)]
        built = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    return html
