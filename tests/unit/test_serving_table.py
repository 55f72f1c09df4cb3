"""The table of serving engines: who is right, wrong or refuses, and what is compared."""

from __future__ import annotations

import pytest

from benchmarks import serving


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
