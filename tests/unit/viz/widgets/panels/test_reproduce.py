"""The code of the panel "Reproduce" and of the model card is run, and makes the adapter again."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tlora
import viz
from tests.helpers.reported import run_of, walked
from viz.widgets.panels.panel import Context
from viz.widgets.panels.reproduce import ReproducePanel, python_calls
from viz.widgets.results import Results, load_results

pytestmark = pytest.mark.usefixtures("workplace")
ADAPTER = "adapter_model.safetensors"


def walk(
    model: str = "llama", data: str = "pairs.jsonl", drawn: bool = False, kind: str = "wc", **options: Any
) -> None:
    """All stages in Python, and what one would save of them."""
    classes = 3 if data == "labels.jsonl" else None
    base, tokenizer = tlora.load_model(model, num_labels=classes)
    task = tlora.load_task(data, tokenizer)
    calibration = tlora.calibrate(base, task.calibration(6), sketch_size=128, progress=False)
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
    assert code.rstrip("\n") == ReproducePanel(Context(load_results("adapter"))).parts()[0]["code"]
    assert written in code
    assert ("task_subspaces" in code) != ("drawn" in options)
    assert "  # or the path of your own data\n" in code
    file = options.get("data", "pairs.jsonl")
    code = code.replace(f"load_task({Path(file).stem!r}", f"load_task({file!r}").replace("'adapter'", "'again'")
    exec(code, {})
    again = load_file(Path("again", ADAPTER))
    assert again.keys() == first.keys()
    assert all(tensor.equal(again[name]) for name, tensor in first.items())


def calls(code: str) -> dict[str, dict[Any, object]]:
    """The calls in a snippet with their literal arguments: positional ones by their number."""
    arguments = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            values = dict(enumerate(node.args)) | {keyword.arg: keyword.value for keyword in node.keywords}
            variable = ast.Name | ast.Attribute | ast.Call
            arguments[node.func.attr] = {
                k: ast.literal_eval(v) for k, v in values.items() if not isinstance(v, variable)
            }
    return arguments


def test_calls_repeat_what_was_recorded() -> None:
    allocation = walked()["allocation"]
    found = calls(python_calls(Results(**walked())))
    assert found["load_task"] == {0: "family_relationships"}
    assert found["calibration"] == {0: 4}
    assert found["calibrate"] == {"gradient": True, "fisher": True}
    assert found["allocate"] == {"rank": 3, "max_rank": 8, "exclude_modules": allocation.options.exclude_modules}
    assert found["edit"] == {0: allocation.edits}
    assert found["train"] == {"learning_rate": 0.01, "epochs": 1, "batch_size": 2, "max_steps": 4, "seed": 0}


def test_directions_that_ranks_follow_come_before_them() -> None:
    known = walked()
    names = known["allocation"].names
    energies = {name: [4.0, 1.0, 0.5] for name in names}
    options = dataclasses.replace(known["allocation"].options, by="captured")
    known["allocation"] = dataclasses.replace(known["allocation"], energies=energies, options=options)
    text = python_calls(Results(**known))
    assert calls(text)["task_subspaces"]["max_rank"] == 3
    assert calls(text)["allocate"]["by"] == "captured"
    assert "subspaces=subspaces" in text
    assert text.index("task_subspaces") < text.index("tlora.allocate")


def test_a_command_line_takes_the_place_of_the_calls() -> None:
    run = run_of()
    line = "tlora run --task 'a b' --output demo"
    run = dataclasses.replace(run, meta=dataclasses.replace(run.meta, recipe={"command": line}))
    parts = ReproducePanel(Context(Results(run=run))).parts()
    assert parts[0]["code"] == line
    assert "load_task" not in str(parts)
    assert dict(parts[-1]["rows"]) == run.meta.versions
