"""The solutions of the lab, on a tiny model in place of the lab's."""

import re

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.pages import DOCS, blocks

PAGE = DOCS / "howto" / "teaching.md"
BEGINNING, SOLUTIONS = ([text for _, text in blocks(part)] for part in PAGE.read_text().split("## Solutions"))


def test_every_exercise_has_a_solution_that_checks_itself() -> None:
    exercises = re.findall(r"^\d\. \*\*", PAGE.read_text().split("## Solutions")[0], re.M)
    assert len(SOLUTIONS) == len(exercises) == 5
    assert all("assert " in solution for solution in SOLUTIONS)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_solutions_hold(family: str) -> None:
    model = tiny_model(family)
    batch = tiny_batch(family, lengths=(7, 4, 9, 6))
    calibration = tlora.calibrate(model, [batch], progress=False)
    name = calibration.names[2]
    given = {
        "torch": torch, "tlora": tlora, "model": model, "batch": batch, "calibration": calibration, "name": name,
        "C": calibration.covariance[name].dense(),
    }  # fmt: skip
    for solution in SOLUTIONS:
        exec(solution, given)


@pytest.mark.packaged
@pytest.mark.rest
def test_the_lab_begins_with_what_solutions_take() -> None:
    (beginning,) = BEGINNING
    given: dict[str, object] = {}
    exec(beginning, given)
    exec(SOLUTIONS[0], given)
