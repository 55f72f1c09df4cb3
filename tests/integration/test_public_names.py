"""What users rely on changes only where the committed list of it does."""

import difflib

from tests.helpers.names import LIST, current


def test_public_names_are_those_of_the_list() -> None:
    changes = difflib.unified_diff(LIST.read_text().splitlines(), current(), "listed", "found", n=0, lineterm="")
    assert not (text := "\n".join(changes)), (
        "the public names changed. If that is meant, `python -m tests.helpers.names` writes the list again, "
        "CHANGELOG.md says so, and what is taken away works for one more release, with a DeprecationWarning "
        f"(CONTRIBUTING.md)\n{text}"
    )
