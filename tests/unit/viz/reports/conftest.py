"""Pages that the tests of this folder share."""

from __future__ import annotations

import pytest

from tests.helpers.reported import Page, results_of, save, walked
from viz import report


@pytest.fixture(scope="module")
def small():
    return results_of("2 layers")


@pytest.fixture(scope="module")
def html(small, tmp_path_factory):
    return report(small.values(), tmp_path_factory.mktemp("report") / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The page of a folder that a real walk left."""
    return Page(report(save(walked(), tmp_path_factory.mktemp("walk") / "adapter")).read_text(encoding="utf-8"))
