"""The demo with few steps: the command line on packaged files, from a task to an adapter that PEFT alone can load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tlora
from tests.helpers.commands import done, next_command

pytestmark = pytest.mark.packaged

HOME = Path(__file__).parents[2] / "notebooks" / "data" / "smart_home"
SIZES = "--validation-samples 4 --samples 4 --steps 6 --lr 2e-3 --eval-limit 6"
ALONE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder, adapter, ids, out = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()
with torch.no_grad():
    torch.save(model(torch.load(ids)).logits, out)
assert "tlora" not in sys.modules
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo leaves, and what it said."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    result = done(f"run smollm2-135m {HOME} --recipe captured {SIZES} --output {folder} --device cpu")
    return folder, result.stdout


def test_demo_learns_and_leaves_what_it_promises(demo: tuple[Path, str]) -> None:
    folder, said = demo
    run = tlora.TrainingRun.load(folder)
    assert run.after["loss"] < run.before["loss"] - 1
    assert {"loss", "perplexity", "exact_match"} <= run.before.keys() & run.after.keys()
    assert len(run.ranks) == 210
    assert run.trainable_parameters <= 1_244_160 < 1.001 * run.trainable_parameters  # as many as with ranks of 8
    assert max(run.ranks.values()) == 32
    assert run.frozen_a
    assert "capture most of the gradient" in (folder / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        f"{name}.png" for name in ("spectrum", "sensitivity", "allocation", "training")
    }
    assert not (folder / "tlora" / "unfinished").exists()
    assert "smart_home --base" in next_command(said)


def test_adapter_is_loaded_by_peft_alone(demo: tuple[Path, str], smollm: Any, tmp_path: Path) -> None:
    folder, (base, tokenizer) = demo[0], smollm
    base.save_pretrained(tmp_path / "base")
    ids = tokenizer("Please switch on the lamp in the kitchen.", return_tensors="pt").input_ids
    torch.save(ids, tmp_path / "ids")
    words = map(str, (tmp_path / "base", folder, tmp_path / "ids", tmp_path / "out"))
    ran = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    model = tlora.load_adapter(folder)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "out"), model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert (model(ids).logits - torch.load(tmp_path / "out")).abs().max() > 0.1


@pytest.mark.rest
def test_minilm_classifies_reviews_with_its_head(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    sizes = "--train-samples 64 --validation-samples 8 --test-samples 40 --samples 8 --batch-size 8"
    done(f"run minilm rotten_tomatoes {sizes} --output {folder} --device cpu")
    run = tlora.TrainingRun.load(folder)
    heads = [name for name in load_file(folder / "adapter_model.safetensors") if "classifier" in name]
    assert heads
    evaluation = json.loads(done(f"evaluate {folder} rotten_tomatoes --json --device cpu").stdout)
    assert evaluation["metrics"]["adapter"] == pytest.approx(run.after)
