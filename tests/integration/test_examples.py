"""The examples in docstrings run and print what they show, on tiny models in place of real ones."""

import doctest
import importlib
import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

import tlora
import viz
from tests.helpers.experts import tiny_mixture
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
WITH_EXAMPLES = [path for package in ("tlora", "viz") for path in sorted((ROOT / package).rglob("*.py"))]
WITH_EXAMPLES = [path for path in WITH_EXAMPLES if ">>> " in path.read_text()]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples start from: the results of the quickstart, on a Llama with two layers, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    matplotlib.use("Agg")
    Path("commands.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    tokenizer = tiny_tokenizer()
    models = {"base": tiny_model("llama"), "tuned": tiny_model("llama", seed=1), "mixture": tiny_mixture()}
    for folder, tiny in models.items():
        tiny.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model, tokenizer = tlora.load_model("base")
    task = tlora.load_task("commands.jsonl", tokenizer, validation=4, test=4)
    calibration = tlora.calibrate(model, task.calibration(8), gradient=True, fisher=True, progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=4, max_rank=8)
    adapted = tlora.attach(tlora.load_model("base")[0], subspaces, allocation)
    run = tlora.train(adapted, task, max_steps=2, batch_size=4, progress=False)
    run.save("adapter")
    mixture, _ = tlora.load_model("mixture")
    routed = tlora.calibrate(mixture, task.calibration(8), target_modules="experts", progress=False)
    other = tlora.attach(tlora.load_model("base")[0], None, allocation, freeze_a=False, seed=1)
    tlora.train(other, task, max_steps=2, batch_size=4, progress=False).save("other")
    local = locals()
    kept = ("model", "tokenizer", "task", "calibration", "subspaces", "allocation", "adapted", "run", "routed")
    return {name: local[name] for name in kept} | {"tlora": tlora, "viz": viz}


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_give_what_they_say(path: Path, names: dict[str, Any]) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module, extraglobs=names, optionflags=FLAGS)
    assert tried
    assert not failed
