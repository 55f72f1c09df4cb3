"""The code under "To reproduce" is run, and makes the adapter again."""

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tlora
import viz
from tests.helpers.reported import Page

pytestmark = pytest.mark.usefixtures("workplace")
ADAPTER = "adapter_model.safetensors"


def walk(
    model: str = "llama", data: str = "pairs.jsonl", drawn: bool = False, kind: str = "wc", **options: Any
) -> None:
    """All stages in Python, and what one would save of them."""
    classes = 3 if data == "labels.jsonl" else None
    base, tokenizer = tlora.load_model(model, num_labels=classes)
    task = tlora.load_task(data, tokenizer)
    calibration = tlora.calibrate(base, task.calibration(6), products="model", progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2)
    made = {"max_rank": allocation, "kind": kind, "progress": False}
    subspaces = None if drawn else tlora.task_subspaces(base, calibration, **made)
    adapted = tlora.attach(base, subspaces, allocation, **options)
    run = tlora.train(adapted, task, max_steps=3, learning_rate=0.01, seed=2, evaluation_limit=1, progress=False)
    run.save("adapter")
    allocation.save("adapter/tlora/allocation")


def code_in(card: str) -> str:
    """The last block of Python."""
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)[-1]


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, "tlora.attach(model, subspaces, allocation)"),
        (
            {"freeze_a": False, "rows": "orthonormal"},
            "tlora.attach(model, subspaces, allocation, freeze_a=False, rows='orthonormal')",
        ),
        ({"drawn": True}, "tlora.attach(model, None, allocation)"),
        (
            {"drawn": True, "freeze_a": False, "seed": 5},
            "tlora.attach(model, None, allocation, freeze_a=False, seed=5)",
        ),
        ({"kind": "c"}, ", kind='c')"),
        ({"model": "bert", "data": "labels.jsonl"}, "tlora.load_model('bert', num_labels=3)"),
    ],
)
def test_code_makes_the_adapter_again(options, written):
    walk(**options)
    first = load_file(Path("adapter", ADAPTER))
    code = code_in(viz.card("adapter"))
    page = Page(viz.report("adapter").read_text(encoding="utf-8"))
    assert code.rstrip("\n") == "".join(page.section("reproduce").all("code")[0].children)
    assert written in code
    assert ("task_subspaces" in code) != ("drawn" in options)
    assert "  # or the path, where it is data of your own\n" in code
    file = options.get("data", "pairs.jsonl")
    code = code.replace(f"load_task({Path(file).stem!r}", f"load_task({file!r}").replace("'adapter'", "'again'")
    exec(code, {})
    again = load_file(Path("again", ADAPTER))
    assert again.keys() == first.keys()
    assert all(tensor.equal(again[name]) for name, tensor in first.items())


def test_what_is_not_recorded_is_named_beside_the_code():
    walk()
    card = " ".join(viz.card("adapter").replace("\\", "").split())
    page = Page(viz.report("adapter").read_text(encoding="utf-8")).section("reproduce").text
    for told in (card, page):
        said = told[told.index("run.save(") :]
        for unrecorded in ("load_model, load_task and task_subspaces", "the path", "optimizer"):
            assert unrecorded in said
        assert "how A began" not in told
