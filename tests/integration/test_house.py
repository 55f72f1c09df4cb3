"""Rules of the whole repository, which the tests of one file cannot check."""

import difflib
import inspect
import re
import subprocess
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from tests.helpers.names import LIST, current, public_things
from tlora.models.module_result import ModuleResult
from tlora.numerics.linalg import fix_signs
from tlora.result_kinds import LOADABLE
from tlora.results import Result

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("tlora/**/*.py"), *ROOT.glob("viz/**/*.py")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_shapes_are_checked_while_tests_run():
    assert fix_signs(torch.eye(2)).equal(torch.eye(2))
    with pytest.raises(TypeCheckError):
        fix_signs(torch.zeros(2))


def public() -> Iterator[tuple[str, Any]]:
    """What `tlora` and `viz` export and return, by name, and the public methods that the classes among it bring."""
    for package in ("tlora", "viz"):
        for name, thing in public_things(package).items():
            if not inspect.isclass(thing):
                yield name, thing
                continue
            assert inspect.getdoc(thing), f"{name} has no docstring"
            for method, function in vars(thing).items():
                function = getattr(function, "__func__", function)  # of a class method
                inherited = any(hasattr(base, method) for base in thing.__mro__[1:])
                if inspect.isfunction(function) and not method.startswith("_") and not inherited:
                    yield f"{name}.{method}", function


def parameters(function: Any) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


def section(docstring: str, title: str) -> str:
    """The text of a numpydoc section."""
    text = re.search(rf"^{title}\n-{{{len(title)}}}\n(.*?)(?=^\w[\w ]*\n---|\Z)", docstring, re.S | re.M)
    return text[1] if text else ""


def documented(docstring: str) -> list[str]:
    """Names in the section Parameters, ``a, b : int`` taken apart."""
    lines = re.findall(r"^([^\s:][^:\n]*)(?: : |$)", section(docstring, "Parameters"), re.M)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def test_public_names_are_those_of_the_list():
    changes = "\n".join(
        difflib.unified_diff(LIST.read_text().splitlines(), current(), "list", "code", n=0, lineterm="")
    )
    assert not changes, f"if that is meant, run `python -m tests.helpers.names` (CONTRIBUTING.md)\n{changes}"


def test_public_functions_are_documented():
    """Every parameter by its name, in order, and what comes back; one parameter may be named in the text."""
    wrong = []
    for name, function in public():
        docstring, names = inspect.getdoc(function) or "", [p.name for p in parameters(function)]
        returns = inspect.signature(function).return_annotation not in (None, "None")
        if not docstring:
            wrong.append(f"{name} has no docstring")
        elif len(names) == 1 and f"``{names[0]}``" in docstring:
            continue
        elif names and documented(docstring) != names:
            wrong.append(f"{name} documents {documented(docstring)} and takes {names}")
        elif names and returns and not section(docstring, "Returns") + section(docstring, "Yields"):
            wrong.append(f"{name} does not say what it returns")
    assert not wrong, "\n".join(wrong)


def test_public_names_have_an_example_that_runs():
    """`test_examples.py` runs them."""
    without = []
    for package in ("tlora", "viz"):
        things = public_things(package)
        without += [name for name, thing in things.items() if ">>> " not in (inspect.getdoc(thing) or "")]
    assert not without, "\n".join(without)


def test_the_tests_that_rule_out_silent_errors_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "testing.md").read_text()))
    defined = set(
        re.findall(r"def (test_\w+)", "".join(path.read_text() for path in tracked() if path.stem.startswith("test_")))
    )
    assert named
    assert not named - defined


def test_tests_import_neither_the_laboratory_nor_each_other():
    """What they share is in tests/helpers, and so is what the laboratory takes; scripts that they start count too."""
    line = re.compile(r"^\s*(?:from|import) ((?:tests|benchmarks)\b[\w.]*)", re.M)
    wrong = []
    for path in tracked():
        if path.suffix != ".py" or path.parts[len(ROOT.parts)] not in ("tests", "benchmarks"):
            continue
        itself = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        allowed = ("tests.helpers", itself) if itself.startswith("tests.") else ("tests.helpers", "benchmarks")
        wrong += [
            f"{relative(path)}: {name}" for name in line.findall(path.read_text()) if not name.startswith(allowed)
        ]
    assert not wrong, "\n".join(wrong)


def tracked() -> list[Path]:
    ran = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in ran.stdout.split("\0") if name] if ran.returncode == 0 else SOURCES


def test_no_file_names_a_folder_of_one_machine():
    folder = re.compile(r"(?<![\w.:/}-])/(?:home|root|Users|mnt|media|opt|work|tmp)/")
    named = []
    for path in tracked():
        if path.is_file() and b"\0" not in path.read_bytes()[:1024]:
            lines = path.read_text(encoding="utf-8").splitlines()
            named += [f"{relative(path)}:{n}: {line}" for n, line in enumerate(lines, 1) if folder.search(line)]
    assert not named, "\n".join(named)


@pytest.mark.parametrize("package", sorted({path.parent for path in SOURCES}), ids=relative)
def test_the_docstring_of_a_package_lists_its_files(package):
    text = (package / "__init__.py").read_text()
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    named = {*re.findall(r"\w+", text)}
    is_listed = package.name not in ("tlora", "viz")  # whose docstrings are the first words of the reference
    assert not is_listed or files <= named, f"{relative(package)}/__init__.py does not name {files - named}"


def test_every_result_can_be_loaded():
    """`load_result` knows every class that can be saved, by its name."""
    kinds, bases = set(), {Result}
    while bases:
        bases = {kind for base in bases for kind in base.__subclasses__()}
        kinds |= {kind for kind in bases if kind.__module__.startswith("tlora.") and is_dataclass(kind)}
    assert kinds - {ModuleResult} == set(LOADABLE.values())
