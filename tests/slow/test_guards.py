"""Every guard against a silent error is taken out once, in a copy: its tests must fail there, and pass with it.

The guards are listed in `guards.toml`. That each still stands where the list says is checked with every change; taking
them out is slow. A new guard is a new entry there, with a test in `tests/unit/` that fails without it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("tlora", "viz", "tests")
# What a mutant that is no program fails of: that proves nothing.
NO_PROGRAM = re.compile(r"^E +(NameError|ImportError|ModuleNotFoundError|SyntaxError|UnboundLocalError)", re.MULTILINE)

Run = Callable[[Path, Iterable[str]], tuple[int, str]]


@dataclass(frozen=True)
class Guard:
    """One entry of the list: ``old`` is the source text of the guard, ``new`` what is left when it is taken out."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def taken_out(self, root: Path) -> str:
        """The source of the file without the guard."""
        source = (root / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.file} has this {source.count(self.old)} times, not once: {self.old}"
        return source.replace(self.old, self.new)


LISTED = tomllib.loads(Path(__file__).with_name("guards.toml").read_text())
GUARDS = {f"{kind}: {entry['name']}": Guard(**entry) for kind, entries in LISTED.items() for entry in entries}
each_guard = pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs tests of ``tests/unit/`` in a folder: exit code and output of pytest."""
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    # Other people's plugins, some of them imported before the fork, have no part in this.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        commands, codes = process.stdin, process.stdout

        def run(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
            arguments = ["-p", "no:cacheprovider", "-rf", *(f"tests/unit/{test}" for test in tests)]
            print(json.dumps({"folder": str(folder), "arguments": arguments}), file=commands, flush=True)
            return int(codes.readline()), (folder / "output.txt").read_text()

        yield run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A copy with all guards in place, in which all their tests pass."""
    copy = tmp_path_factory.mktemp("whole")
    for folder in COPIED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    code, output = run(copy, sorted({test for guard in GUARDS.values() for test in guard.tests}))
    assert code == 0, output
    return copy


@each_guard
def test_it_stands_where_the_list_says(guard: Guard) -> None:
    ast.parse(guard.taken_out(ROOT))
    for test in guard.tests:
        file, function = test.partition("[")[0].split("::")
        assert f"def {function}(" in (ROOT / "tests" / "unit" / file).read_text(), test


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@each_guard
def test_without_it_its_tests_fail(guard: Guard, whole: Path, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / guard.file).write_text(guard.taken_out(copy))
    code, output = run(copy, guard.tests)
    assert code == pytest.ExitCode.TESTS_FAILED, output
    survived = [test for test in guard.tests if f"FAILED tests/unit/{test}" not in output]
    assert not survived, f"{survived} pass without the guard\n{output}"
    assert not NO_PROGRAM.search(output), output
