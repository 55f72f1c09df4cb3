"""What is missing is named with the extra that has it; what a core installation has is enough for the core."""

import subprocess
import sys
from pathlib import Path

import pytest

from tlora.utils.packages import library_versions, require

ROOT = Path(__file__).parents[3]
EXTRA = ["matplotlib", "seaborn", "ipywidgets", "anywidget", "IPython", "nbval", "jupyterlab", "reasoning_gym", "gguf"]
CORE = f"""
import importlib, inspect, pkgutil, sys
sys.modules.update(dict.fromkeys({EXTRA}))  # as if they were not installed
import tlora
for module in pkgutil.walk_packages(tlora.__path__, "tlora."):
    if not module.name.endswith(("__main__", "_worker")):
        importlib.import_module(module.name)
assert not [name for name in tlora.__all__ if inspect.ismodule(getattr(tlora, name))], "hidden behind a file"
assert not hasattr(tlora.numerics.linalg.fix_signs, "__wrapped__"), "shapes are checked outside of tests"
"""


def run(code: str) -> str:
    """What a process prints that has none of the extras."""
    ran = subprocess.run([sys.executable, "-c", CORE + code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_package_that_is_there_is_not_missed() -> None:
    require("json", "all")


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^nowhere is not installed: run `pip install -e '\.\[viz\]'`$"):
        require("nowhere", "viz")


def test_versions_are_those_that_decide_the_numbers() -> None:
    assert {"torch", "transformers", "peft", "datasets"} <= library_versions().keys()


def test_the_core_needs_no_extra_and_what_does_names_it() -> None:
    code = """
import torch, viz
from pathlib import Path
from tlora.models.loading import resolve
from tlora.serving.export import choose_format
from tlora.tasks.reasoning_gym import generator_names
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**sizes))
ids = torch.arange(12).view(2, 6)
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
calibration = tlora.calibrate(model, [batch])
subspaces = tlora.task_subspaces(model, calibration, max_rank=4)
tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=4))
for ask in (lambda: viz.plot_spectrum, generator_names, lambda: choose_format("gguf", None, Path("adapter"))):
    try:
        ask()
    except ModuleNotFoundError as error:
        print(error)
"""
    assert run(code).splitlines() == [
        f"{module} is not installed: run `pip install -e '.[{extra}]'`"
        for module, extra in (("matplotlib", "viz"), ("reasoning_gym", "tasks"), ("gguf", "gguf"))
    ]
