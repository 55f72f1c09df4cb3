"""Every sentence that the page of claims quotes still stands where the page says."""

import re
from pathlib import Path

import pytest

from tests.helpers.pages import DOCS

PAGE = DOCS / "results" / "claims.md"
ROWS = re.findall(r"^\| \"(.+)\" \| (?:\[[^]]+\]\((.+?)\)|README) \| (.+) \|$", PAGE.read_text(), re.M)


def plain(text: str) -> str:
    """The text with one space between words, and of links their words alone."""
    return " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).split())


def test_every_row_of_the_page_is_read():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith('| "')]
    assert len(ROWS) == len(rows) > 30


@pytest.mark.parametrize(("sentence", "place", "evidence"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_quoted_sentence_stands_in_its_file_and_its_evidence_is_there(sentence: str, place: str, evidence: str):
    assert plain(sentence) in plain((PAGE.parent / (place or "../../README.md")).read_text())
    named = [PAGE.parent / path for path in re.findall(r"\]\(([^)#]+)", evidence)]
    named += [Path(DOCS.parent, path) for path in re.findall(r"`(tests/[^`]+)`", evidence)]
    assert [str(path) for path in named if not path.exists()] == []
