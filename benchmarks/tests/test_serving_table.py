"""The table of serving engines in docs is the one of the stored results, and says what the text around it says."""

import json
from pathlib import Path

import pytest

from benchmarks.serving import compare as serving

ROOT = Path(__file__).parents[2]
STORED = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
ROWS = {row["engine"]: row for row in STORED["engines"]}


def test_the_readme_has_the_table():
    assert serving.table(STORED) in (ROOT / "docs" / "results" / "serving.md").read_text()


def test_what_is_exported_or_merged_is_right_everywhere():
    for row in STORED["engines"]:
        for form in ("exported", "merged"):
            assert serving.is_right(row, form, STORED["prompts"]), (row["engine"], form, row[form])


def test_as_saved_it_is_computed_refused_and_computed_wrongly_as_the_list_of_engines_says():
    """What `tlora inspect` says of these engines was read in their sources; here they have run."""
    told = {"PEFT 0.21": True, "PEFT 0.13": None, "vLLM 0.32": True, "vLLM 0.31": False, "llama.cpp": False}
    for name, right in told.items():
        (row,) = [row for engine, row in ROWS.items() if engine.startswith(name)]
        assert (serving.REFUSED in row["saved"]) is (right is None)
        assert serving.is_right(row, "saved", STORED["prompts"]) is bool(right)


def test_the_adapter_is_one_that_tells_engines_apart():
    assert STORED["ranks"][0] < STORED["ranks"][1] / 2
    assert STORED["scalings"][0] < STORED["scalings"][1]
    assert STORED["effect"] > 1


def row(**cells):
    return {"engine": "x", "base": {"same": 2, "difference": 1e-4}} | cells


@pytest.mark.parametrize(
    ("cell", "right", "told"),
    [
        ({"same": 2, "difference": 9e-4}, True, "9.0e-04"),
        ({"same": 2, "difference": 2e-3}, False, "**wrong**: 0.002, 0 of 2 texts"),
        ({"same": 1, "difference": 1e-4}, False, "**wrong**: 0.0001, 1 of 2 texts"),
        ({"refused": "too large"}, False, "refuses"),
    ],
)
def test_right_wrong_and_refused(cell, right, told):
    found = row(saved=cell, exported=cell, merged=cell)
    assert serving.is_right(found, "saved", 2) is right
    assert serving.table({"engines": [found], "prompts": 2}).splitlines()[-1].endswith(f"| {told} | {told} | {told} |")


def test_texts_end_where_they_end_and_steps_are_compared_up_to_the_first_other_token():
    asked = serving.Questions(((1,),), tokens=3, top=2, ends=(9,))
    mine = {"tokens": [4, 5, 9], "likeliest": [{4: -0.1, 6: -2.0}, {5: -0.2, 7: -3.0}, {9: -0.3, 8: -1.0}]}
    theirs = {"tokens": [4, 7, 2], "likeliest": [{4: -0.2, 8: -2.0}, {7: -0.5, 5: -0.9}, {9: -9.0, 2: -0.1}]}
    answers = {form: [theirs] for form in serving.FORMS}
    found = serving.compared("x", answers, {"base": [mine], "saved": [mine]}, asked)
    assert found["saved"]["same"] == 0
    assert found["saved"]["difference"] == pytest.approx(2.5)  # token 7 at the second step; the third follows others
    shorter = {"tokens": [4, 5], "likeliest": mine["likeliest"][:2]}
    found = serving.compared("x", {form: [shorter] for form in serving.FORMS}, {"base": [mine], "saved": [mine]}, asked)
    assert found["saved"] == {"same": 1, "difference": 0.0}
