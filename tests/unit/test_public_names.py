"""What users rely on changes only where the committed list of it does."""

from __future__ import annotations

import difflib

from tests.names import LIST, current


def test_public_names_are_those_of_the_list() -> None:
    changes = difflib.unified_diff(LIST.read_text().splitlines(), current(), "listed", "found", n=0, lineterm="")
    assert not (text := "\n".join(changes)), (
        "the public names changed. If that is meant: `python -m tests.names` writes the list anew, CHANGELOG.md says "
        f"so, and what is taken away works for one more release, with a DeprecationWarning (CONTRIBUTING.md)\n{text}"
    )
