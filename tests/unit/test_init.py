"""The public names are loaded when they are asked for, and are the same whatever was imported before."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tlora
from tests.helpers.names import in_order

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib"}


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("package", ["tlora", "viz"])
def test_importing_a_package_loads_no_torch(package: str) -> None:
    code = f"import sys, {package}; {package}.__all__, dir({package}); print(*{HEAVY} & sys.modules.keys())"
    assert fresh(code).split() == []


@pytest.mark.parametrize("package", ["tlora", "viz"])
def test_every_name_of_the_stub_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(in_order(package)) == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert (thing.__name__, thing.__module__.partition(".")[0]) == (name, package)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense


@pytest.mark.parametrize("names_first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_no_name_is_hidden_behind_a_file(names_first: bool) -> None:
    """Importing a submodule sets it as an attribute of its package, where a function of the same name may be."""
    names = "for name in tlora.__all__: getattr(tlora, name)"
    files = "for file in pkgutil.iter_modules(tlora.__path__): importlib.import_module(f'tlora.{file.name}')"
    steps = [names, files] if names_first else [files, names]
    code = "\n".join(["import importlib, inspect, pkgutil, tlora", *steps, "print(*filter(hidden, tlora.__all__))"])
    hidden = "hidden = lambda name: inspect.ismodule(getattr(tlora, name))"
    assert fresh(code.replace("\n", f"\n{hidden}\n", 1)).split() == []


def test_the_version_is_a_plain_text() -> None:
    assert tlora.__version__.split(".")[0].isdecimal()
