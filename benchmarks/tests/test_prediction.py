"""What of a frozen `A`'s cost could be known before, on numbers that are easy to follow."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import comparison, pilot, prediction, study
from benchmarks.quality.prediction import TaskLosses


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Three tasks: LoRA learns 2, 1 and 4 nats, and freezing costs a tenth, none and a half of that."""
    costs = {"a": (2.0, 0.2), "b": (1.0, 0.0), "c": (4.0, 2.0)}
    places = [
        TaskLosses(tmp_path, task, frozen=pd.Series([1 + cost, 1 + cost]), lora=pd.Series([0.9, 1.1]))
        for task, (_, cost) in costs.items()
    ]
    found = {
        task: {"loss": 1 + learned, "capture": 0.9 - cost / 4, "kept": 0.5 - cost / 9}
        for task, (learned, cost) in costs.items()
    }
    monkeypatch.setattr(
        prediction, "task_losses", lambda: iter([*places, TaskLosses(tmp_path, "not yet", *[pd.Series([1.0])] * 2)])
    )
    monkeypatch.setattr(prediction, "RESULTS", tmp_path / "prediction.json")
    prediction.RESULTS.write_text(json.dumps(found))


def test_costs_are_parts_of_what_lora_learns(measured):
    rows = prediction.measured_table().set_index("task")
    assert rows["cost"].to_dict() == pytest.approx({"a": 0.2, "b": 0.0, "c": 2.0})
    assert rows["part"].to_dict() == pytest.approx({"a": 0.1, "b": 0.0, "c": 0.5})
    by = prediction.correlations(prediction.measured_table()).set_index("predictor")["with the part"]
    assert by["share of the gradient that the directions hold"] == pytest.approx(-1)
    assert by["loss of the base, nats"] == pytest.approx(1)


def test_the_page_has_a_row_for_each_task_and_each_predictor(measured):
    command = "python -m benchmarks.quality.prediction --table"
    marks = "".join(
        f"<!-- prediction, {name}: {command} -->\n<!-- end of prediction, {name} -->\n" for name in prediction.BLOCKS
    )
    text = prediction.render(marks)
    assert prediction.render(text) == text
    assert "| c | +2.000 | +50.0 % | 40 % | 11 % | 5.00 |" in text
    assert text.count("\n| ") == (2 + 3) + (2 + len(prediction.PREDICTORS))
    figure = prediction.draw(prediction.measured_table())
    assert len(figure.axes) == 2 * len(prediction.PREDICTORS)
    plt.close("all")


def test_the_page_is_that_of_what_was_measured():
    """As the results make it; and what freezing costs again, for three tasks, from the lines of the stores."""
    text = study.PAGE.read_text()
    assert prediction.render(text) == text, "run python -m benchmarks.quality.prediction --table"
    assert b"Description\0" + prediction.digest().encode() in prediction.PICTURE.read_bytes()
    table = text.split("<!-- prediction, tasks")[1].split("<!-- end")[0]
    costs = {line.split(" | ")[0].strip("| "): float(line.split(" | ")[1]) for line in table.splitlines()[4:] if line}
    by_hand = {
        "cipher": (pilot.STORE, ("frozen wc", 3.2e-2), ("lora", 4e-3)),
        "imdb": (pilot.STORE, ("score", 4e-3), ("lora", 2e-3)),
        "syllogism": (comparison.STORE, ("score", 5e-4), ("lora", 2e-3)),
    }
    assert len(costs) == 8
    for task, (store, *arms) in by_hand.items():
        losses = [
            np.mean([
                run["metrics"]["loss"]
                for run in map(json.loads, store.read_text().splitlines())
                if {"task": task, "method": method, "learning_rate": rate, "rank": 8, "split": "test"}.items()
                <= run["key"].items()
            ])
            for method, rate in arms
        ]  # fmt: skip
        assert costs[task] == pytest.approx(losses[0] - losses[1], abs=0.000501)
