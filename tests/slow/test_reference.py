"""The reference is built without a warning, has a page for each public name, and no link of it leads nowhere."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.places |= {values["id"]} if "id" in values else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("_build", "reference")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=ignored)
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", "html"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_each_public_name_has_a_page_that_says_what_it_is(site: Path) -> None:
    for package in ("tlora", "viz"):
        for name in importlib.import_module(package).__all__:
            page = (site / "reference" / f"{package}.{name}.html").read_text(encoding="utf-8")
            assert f'id="{package}.{name}"' in page


def test_no_link_leads_nowhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    wrong, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                assert url.scheme in ("https", "data"), link
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            checked += 1
            there = target.is_file() and (
                not url.fragment or target not in pages or url.fragment in pages[target].places
            )
            wrong += [] if there else [f"{path.relative_to(site)}: {link}"]
    assert checked > 1000
    assert not wrong, "\n".join(wrong[:20])


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = [p.name for p in site.rglob("*.html") if 'src="http' in p.read_text(encoding="utf-8")]
    assert fetched == []
