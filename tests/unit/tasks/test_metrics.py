"""Scores of answers, by hand."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlora.tasks.metrics import (
    METRICS,
    equal_values,
    final_answer,
    last_boxed,
    score_text,
)

HEADINGS = ("1) First", "1: Add", "1.", "1\\. Add", "2 steps", "5 + 3")
SAID = ("\\$42", "€42", "+42", "(42)", "x = 42", "Answer: 42", "42.", "42 apples")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Natalia sold 48/2 = 24 clips.\n#### 72", "72"),
        ("#### 1,234", "1,234"),
        ("#### 7\n#### 8\nand more 9", "7"),
        ("#### Step 1: Add\n40 + 2 = 42\n\n#### Step 2: Conclude\nTherefore the answer is 42.", "42."),
        ("#### 1. Add\n40 + 2\n#### Final answer\n42", "42"),
        ("So:\n#### yes", "yes"),
        *((f"#### {heading}\nadd\n#### 42", "42") for heading in HEADINGS),
        *((f"#### {said}\nDone 3", said) for said in SAID),
        ("#### \N{MINUS SIGN}5", "-5"),
        ("So we have it. The answer is: 42", "42"),
        ("the answer is \\frac{1}{2}", "\\frac{1}{2}"),
        ("The answer is 3.\nNo, the answer is: 4", "4"),
        ("The answer is 5. No, the answer is 6.", "6."),
        ("The answer is 5. The answer is\n6", "6"),
        ("The answer is 42. I hope this answer is helpful.", "42. I hope this"),
        ("The answer is 2.\nThe answer is B.", "B."),
        ("The answer is 2, no, the answer is \\pi", "\\pi"),
        ("The answer is", ""),
        ("The answer is **42**.", "42."),
        ("**The answer is 42** apples", "42 apples"),
        ("####**42**", "42"),
        ("The answer is 3 * 4 = *12*", "3 * 4 = 12"),
        ("the answer is 2**3**2", "2**3**2"),
        ("the answer is a^*b^*", "a^*b^*"),
        ("She has 3 apples and 4 pears, 7 in all.", "7"),
        ("It costs $1,250.50 today", "$1,250.50"),
        ("So 3/4 of the cake are left.", "3/4"),
        ("", ""),
        ("We get $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("#### 5 but \\boxed{6}", "6"),
        ("first \\boxed{1}, then \\fbox{2}", "2"),
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1}", "1"),
        ("\\boxed{\\frac{1}{2}} and \\boxed{ x^{2} }", "x^{2}"),
        ("\\boxed{{a}}", "{a}"),
        ("$\\boxed 5$.", "5"),
        ("\\boxed{1", None),
        ("boxed", None),
        ("", None),
    ],
)
def test_the_last_box(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("72", "72.00 dollars"),
        ("1234", "1,234, as said"),
        ("1234", "it is 1,234 apples"),
        ("1,234", "1234"),
        ("1234", "$1,234"),
        ("7", "3 + 4 = 7"),
        ("42", "42 apples"),
        ("10", "10\\%"),
        ("0.5", "0.50 kg"),
        ("42", "about 42 apples, 7 a day."),
        ("42", "42\\text{ cm}"),
        ("0.5", "\\frac{1}{2}"),
        ("\\frac{1}{2}", "1/2"),
        ("\\frac{1}{2}", "\\dfrac12"),
        ("\\frac{1}{2}", "0.5"),
        ("-\\frac{3}{4}", "-3/4"),
        ("\\frac{\\sqrt{3}}{2}", "\\frac{\\sqrt3}{2}"),
        ("x=5", "5"),
        ("\\left( 1, \\infty \\right)", "(1,\\infty)"),
        ("90^\\circ", "90"),
        ("\\text{(C)}", "(C)"),
        ("42", "(42)."),
        ("-42", "( -42 )"),
        ("42", "(42) apples"),
        ("(3,4)", "(3, 4)"),
        ("-5", "\N{MINUS SIGN}5"),
        ("42", "\\(42\\)."),
        ("10{,}000", "10,\\!000"),
        ("15\\text{ cm}^2", "15"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\\n2\\end{pmatrix}"),
        ("7", "x = 7: done"),
        ("7", "3 + 4 => 7"),
        ("1,200\\pi", "1200\\pi"),
        ("\\frac{1,000}{3}", "\\frac{1000}{3}"),
        ("2,345_6", "2345_6"),
    ],
)
def test_equal_values(reference, answer):
    assert equal_values(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("72", "27"),
        ("25", "2,5"),
        ("1234", "1,2,3,4"),
        ("1", "1, 2"),
        ("72", ""),
        ("5", "-5"),
        ("7", "7.5"),
        ("", ""),
        ("\\frac{1}{2}", "\\frac{2}{1}"),
        ("7", "7/2"),
        ("7", "\\frac{7}{2}"),
        ("7", "7x"),
        ("7", "7 + x"),
        ("7", "(7, 8)"),
        ("7", "7, 8"),
        ("7", "7\\pi"),
        ("7", "7^2"),
        ("7", "\\sqrt{7}"),
        ("7", "-(7)"),
        ("7", "7**2"),
        ("7", "(7x)"),
        ("7", "f(7)"),
        ("34", "(3,4)"),
        ("5", "0.5"),
        ("\\frac{1}{2}", "\\frac{2}{4}"),
        ("(1,2)", "(2,1)"),
        ("nan", "nan1"),
        *(("7", text) for text in ("x^7", "x/7", "a*7", "√7", "π/7", "7π", "7√2", "7×2", "7 ÷ 2", "7·2", "7²", "7½")),
        *(("7", text) for text in ("7:3", "x > 7", "7–9", "x7")),
        ("5", "\N{MINUS SIGN}5"),
        ("1, 100", "1100"),
        ("(2,100)", "(2100)"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}12\\end{pmatrix}"),
    ],
)
def test_different_values(reference, answer):
    assert not equal_values(reference, answer)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "{}.00", "so {} in all", "x = {}"]))
def test_a_number_is_itself_however_it_is_written(number, written):
    text = written.format(number).replace("$-", "-$")
    assert equal_values(str(number), final_answer(f"#### {text}"))
    assert not equal_values(str(number + 1), final_answer(f"#### {text}"))


def test_scores_by_hand():
    rows = [{"answer": "mother"}, {"answer": " x "}, {"answer": "a"}]
    assert score_text(rows, ["mother\n", "x", "A"]) == [1, 1, 0]
    solved = [{"answer": "2 + 2 = 4\n#### 4"}, {"answer": "\\boxed{\\frac12}"}]
    assert METRICS["final_answer"].score(solved, ["The answer is: 4.0", "It is \\boxed{1/2}"]) == {
        "exact_match": [1, 1]
    }
    assert METRICS["final_answer"].score(solved, ["5", "none"]) == {"exact_match": [0, 0]}
    assert METRICS["loss"].score is None


def test_long_answers_take_no_longer_than_they_are_long():
    began = time.process_time()
    for text in ("#" * 50_000 + "\nx y", "#### " * 10_000 + "\nx y", "1,234," * 10_000, "(" * 20_000, "-$" * 20_000):
        equal_values("7", final_answer(text))
    assert time.process_time() - began < 5
