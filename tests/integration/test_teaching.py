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
    beginning = BEGINNING[-1]  # after the line that writes the scenes
    given: dict[str, object] = {}
    exec(beginning, given)
    exec(SOLUTIONS[0], given)


def test_the_answers_of_the_short_lab_are_those_of_its_page() -> None:
    scores = tlora.load_result(DOCS / "gallery" / "data" / "sensitivity.safetensors")
    allocation, total = tlora.allocate(scores, rank=8), sum(scores.scores.values())
    module = max(allocation.ranks, key=allocation.ranks.get)
    edited, uniform = allocation.edit({module: 8}), tlora.allocate(scores, rank=8, temperature=0)
    gains = [edited.ranks[name] - rank for name, rank in allocation.ranks.items() if edited.ranks[name] > rank]
    assert module == "model.layers.1.self_attn.v_proj"
    assert set(uniform.ranks.values()) == {8}
    lab = PAGE.read_text().split("## A lab of 15 minutes")[1].split("\n## ")[0]
    for answer in (
        f"rank {allocation.ranks[module]}, {100 * scores.scores[module] / total:.1f} % of all scores",
        f"{scores.scores[module] * len(scores.scores) / total:.1f} times the mean",
        f"{sum(gains)} ranks, to {len(gains)} modules; the sum stays {sum(edited.ranks.values()):,}",
        f"rise by {edited.trainable_parameters - allocation.trainable_parameters:,}",
        f"{uniform.trainable_parameters:,} trained parameters instead of {allocation.trainable_parameters:,}",
    ):
        assert answer in lab, answer
