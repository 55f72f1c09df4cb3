"""Fixtures that every test may use."""

import os
import shutil
import signal
from collections.abc import Iterator

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
    "tests.helpers.site",
]

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
