"""The site has a page for each public name and notebook, no link of it leads nowhere, and it fetches nothing."""

from __future__ import annotations

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from tests.helpers.pages import DOCS, ROOT, WRITTEN
from tlora.cli import main

pytestmark = pytest.mark.rest


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


def test_every_page_and_notebook_is_there(site: Path) -> None:
    written = [path.relative_to(DOCS) for path in WRITTEN if "data" not in path.parts]
    notebooks = [path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [path for path in (*written, *notebooks) if not (site / path.with_suffix(".html")).is_file()] == []


def test_every_picture_of_viz_is_in_the_gallery(site: Path) -> None:
    names = importlib.import_module("viz").__all__
    text = re.sub("<[^>]*>", "", (site / "gallery" / "index.html").read_text(encoding="utf-8"))
    assert [name for name in names if f"viz.{name}" not in text] == []


def test_every_command_is_on_the_page_of_the_command_line(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    commands = typer.main.get_command(main.app).commands
    assert [name for name in commands if f'id="tlora-{name}"' not in text] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = [p.name for p in site.rglob("*.html") if re.search(r'(src|@import)="?.?http', p.read_text("utf-8"))]
    assert fetched == []
