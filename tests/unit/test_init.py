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


def test_inspecting_an_adapter_loads_neither_peft_nor_transformers() -> None:
    code = "import sys, tlora; tlora.inspect; print(*{'peft', 'transformers', 'torch'} & sys.modules.keys())"
    assert fresh(code).split() == ["torch"]


def test_explore_is_there_at_once_and_shows_a_bar_while_it_loads_the_rest() -> None:
    assert fresh(f"import sys, viz; viz.explore; print(*{HEAVY} & sys.modules.keys())").split() == []


@pytest.mark.parametrize("package", ["tlora", "viz"])
def test_every_name_of_the_stub_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(in_order(package)) == sorted(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert (thing.__name__, thing.__module__.partition(".")[0]) == (name, package)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = module.nonsense


def test_the_version_is_a_plain_text() -> None:
    assert tlora.__version__.split(".")[0].isdecimal()


def test_viz_has_a_longer_name() -> None:
    assert fresh("import tlora; from tlora import viz; import viz as same; print(tlora.viz is viz is same)") == "True\n"
