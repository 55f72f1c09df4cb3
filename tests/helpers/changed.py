"""Runs the tests of what is changed: in the commits of this branch since ``main``, and in the working tree.

    python -m tests.helpers.changed -m "not slow"      # what follows is passed on to pytest

- A file of `tlora` or `viz` has the tests of its name, ``tests/unit/<folder>/test_<file>.py``, or else those of the
  nearest folder.
- A file of `viz/browser` has the tests of the browser code, which deno runs, and that of its bundle.
- A test has itself, and a ``conftest.py`` its folder.
- A helper has the unit tests that import it, also by way of other helpers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELPERS = Path("tests", "helpers")
UNIT = Path("tests", "unit")
BROWSER = Path("viz", "browser")
BUNDLE = UNIT / "viz" / "widgets" / "test_bundle.py"


def changed_files(root: Path = ROOT) -> list[Path]:
    """Files that differ from where this branch left ``main``, new and deleted ones too, relative to the root."""
    base = _git(root, "merge-base", "main", "HEAD").strip()
    names = _git(root, "diff", "--name-only", "-z", base)
    names += _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted({Path(name) for name in names.split("\0") if name})


def select_tests(files: Iterable[Path], root: Path = ROOT) -> list[Path]:
    """Files and folders of tests, relative to the root."""
    return sorted({test for file in files for test in _tests_of_file(file, root) if (root / test).exists()})


def _tests_of_file(file: Path, root: Path) -> Iterator[Path]:
    if file.is_relative_to(BROWSER):
        yield from (BROWSER / "tests", BUNDLE)
    elif file.parts[0] in ("tlora", "viz"):
        yield _unit_tests(file, root)
    elif file.parent == HELPERS:
        yield from (_test_itself(test) for test in _importers(file.stem, root))
    elif file.parts[0] == "tests" and file.name.startswith(("test_", "conftest")):
        yield _test_itself(file)


def _unit_tests(file: Path, root: Path) -> Path:
    folder = UNIT / (file.parent if file.parts[0] == "viz" else file.parent.relative_to("tlora"))
    test = folder / f"test_{file.stem.strip('_')}.py"
    return next(path for path in (test, *test.parents) if (root / path).exists())


def _test_itself(file: Path) -> Path:
    return file.parent if file.name == "conftest.py" else file


def _importers(helper: str, root: Path) -> list[Path]:
    files = [file for folder in (UNIT, HELPERS) for file in (root / folder).rglob("*.py")]
    texts = {file.relative_to(root): file.read_text() for file in files}
    helpers, found = [helper], set()
    for name in helpers:
        imports = re.compile(rf"\btests\.helpers(\.| import (.*\W)?){name}\b")
        importers = {path for path, text in texts.items() if imports.search(text)} - found
        found |= importers
        helpers += [path.stem for path in importers if path.parent == HELPERS]
    return [path for path in found if path.is_relative_to(UNIT)]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    tests = select_tests(changed_files())
    if not tests:
        sys.stdout.write("No test belongs to what is changed.\n")
        return
    if (of_browser := BROWSER / "tests") in tests:
        tests.remove(of_browser)
        subprocess.run([Path(sysconfig.get_path("scripts"), "deno"), "test"], cwd=ROOT / BROWSER, check=True)
    code = pytest.main([*sys.argv[1:], *map(str, tests)]) if tests else pytest.ExitCode.OK
    raise SystemExit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)


if __name__ == "__main__":
    main()
