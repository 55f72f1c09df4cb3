"""The lab: its two notebooks are one, its solutions pass its tests, on a tiny model too, and common mistakes do not."""

import re
from collections.abc import Iterable
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

import tlora
from tests.helpers.lab import SOURCE, STUDENTS, exercises
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.pages import DOCS

PAGE = DOCS / "howto" / "teaching.md"
SOLUTIONS, BLANKS = (nbformat.read(path, as_version=4).cells for path in (SOURCE, STUDENTS))
TESTS = {cell.id.removesuffix("_test"): cell for cell in SOLUTIONS if cell.id.endswith("_test")}
STUBS = [cell for cell in BLANKS if cell.cell_type == "code" and "# YOUR CODE HERE" in cell.source]
MISTAKES = {
    "effective_rank": [
        "def effective_rank(C): return float(torch.linalg.matrix_rank(C))",
        "def effective_rank(C): return float(C.sum() ** 2 / C.square().sum())",
        "def effective_rank(C): return float(C.trace() ** 2 / C.diagonal().square().sum())",
    ],
    "halves": [
        "halves = [calibration, calibration]",
        "rows = len(batch['labels']) // 2\n"
        "halves = [tlora.calibrate(model, [{key: value[:rows] for key, value in batch.items()}])] * 2",
    ],
    "share_inside": [
        "def share_inside(P, Q): return float((P @ Q.T).square().sum())",
        "def share_inside(P, Q): return float((P @ Q.T).square().sum() / len(Q))",
        "def share_inside(P, Q): return float((P @ Q.T).abs().sum() / len(P))",
    ],
    "chance": ["chance = len(P) / len(Q)", "chance = len(P) / P.shape[1]"],
    "sums": [
        "sums = scores.scores",
        "sums = {name: score * sum(scores.shapes[name]) for name, score in scores.scores.items()}",
    ],
    "gains": [
        "gains = dict.fromkeys(scores.projections.values(), 0)",
        "gains = {by_sum.projections[n]: by_sum.ranks[n] - rank for n, rank in by_mean.ranks.items()}",
    ],
    "leave_out": [
        "def leave_out(scores, n): return replace(scores, per_sample=scores.per_sample[n:n + 1])",
        "def leave_out(scores, n): return replace(scores, per_sample=scores.per_sample[1:])",
    ],
    "moved": [
        "whole = tlora.allocate(scores, rank=4)\nmoved = [1] * len(scores.per_sample)",
        "whole = tlora.allocate(scores, rank=4)\nmoved = [sum(abs(tlora.allocate(replace(scores, per_sample=torch.cat("
        "[scores.per_sample[:n], scores.per_sample[n + 1:]])), rank=4).ranks[m] - rank) for m, rank in "
        "whole.ranks.items()) for n in range(len(scores.per_sample))]",
    ],
    "error_of_cut": [
        "def error_of_cut(update, rank): s = torch.linalg.svdvals(update); return float(s[rank:].sum() / s.sum())",
        "def error_of_cut(update, rank): s = torch.linalg.svdvals(update) ** 2; return float(s[rank:].sum() / s.sum())",
        "def error_of_cut(update, rank): s = torch.linalg.svdvals(update); return float(s[:rank].norm() / s.norm())",
    ],
    "cuts": ["plain = on_task = tlora.compress(adapter, rank=2)", "plain = on_task = tlora.compress(adapter, rank=3)"],
}  # fmt: skip
"""Wrong code in place of the solution of each blank."""


def run(cells: Iterable[NotebookNode], given: dict[str, Any]) -> None:
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, given)


def prepared(family: str) -> dict[str, Any]:
    """The names that the preparation leaves, of a tiny model."""
    given: dict[str, Any] = {}
    cells = {cell.id: cell for cell in SOLUTIONS}
    exec(cells["imports"].source, given)
    model, batch = tiny_model(family), tiny_batch(family, lengths=(7, 4, 9, 6))
    calibration = tlora.calibrate(model, [batch], progress=False)
    given |= {"model": model, "batch": batch, "calibration": calibration, "CELL": calibration.names[2]}
    exec(cells["results"].source, given)
    return given


@pytest.fixture(scope="module", params=["llama", "bert"])
def solved(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The names after all solutions."""
    given = prepared(request.param)
    run(SOLUTIONS[[cell.id for cell in SOLUTIONS].index("results") + 1 :], given)
    return given


def test_the_students_notebook_is_the_source_without_its_solutions() -> None:
    assert STUDENTS.read_text("utf-8") == exercises()
    text = "\n".join(cell.source for cell in BLANKS)
    assert "SOLUTION" not in text
    assert [cell.id for cell in BLANKS] == [cell.id for cell in SOLUTIONS]
    assert [cell.id for cell in STUBS] == list(TESTS) == list(MISTAKES)


def test_neither_stores_an_output() -> None:
    assert not [cell.id for cell in (*SOLUTIONS, *BLANKS) if cell.get("outputs") or cell.get("execution_count")]


def test_nbgrader_knows_the_blanks_and_the_tests() -> None:
    marks = {cell.id: cell.metadata["nbgrader"] for cell in SOLUTIONS if "nbgrader" in cell.metadata}
    assert {mark["grade_id"] for mark in marks.values()} == set(marks)
    for name in MISTAKES:
        assert (marks[name]["solution"], marks[name]["grade"]) == (True, False)
        test = marks[f"{name}_test"]
        assert (test["solution"], test["grade"], test["locked"]) == (False, True, True)


def test_solutions_pass_their_tests(solved: dict[str, Any]) -> None:
    assert {"halves", "gains", "moved", "on_task"} <= set(solved)


@pytest.mark.parametrize("cell", STUBS, ids=lambda cell: cell.id)
def test_blanks_fail(cell: NotebookNode, solved: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):  # a function that is not written fails when its test calls it
        run([cell, TESTS[cell.id]], dict(solved))


@pytest.mark.parametrize(("name", "code"), [(name, code) for name in MISTAKES for code in MISTAKES[name]])
def test_common_mistakes_fail(name: str, code: str, solved: dict[str, Any]) -> None:
    wrong = dict(solved)
    exec(code, wrong)
    with pytest.raises(AssertionError):
        exec(TESTS[name].source, wrong)


@pytest.mark.packaged
@pytest.mark.rest
def test_solutions_run_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE.parent)
    run(SOLUTIONS, {})


def test_each_exercise_is_on_the_page() -> None:
    titles = [line for cell in SOLUTIONS for line in re.findall(r"^## Exercise \d · (.+)$", cell.source, re.M)]
    assert re.findall(r"^\d\. \*\*(.+?)\.?\*\*", PAGE.read_text(), re.M) == titles


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
