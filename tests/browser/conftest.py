"""A real JupyterLab with the project's notebooks, and a real browser in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.jupyterlab import Lab, opened, served


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one JupyterLab for all tests."""
    with served(tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture
def lab(server: str, chromium: str) -> Iterator[Lab]:
    """JupyterLab in the browser, with notebooks that train for a few steps."""
    with opened(server, chromium) as page:
        yield page
