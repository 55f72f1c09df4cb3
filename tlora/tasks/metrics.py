"""Scores of answers: pure functions from texts to scores, and the table of metrics by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Scores = dict[str, list[float]]
Score = Callable[[Rows, Sequence[str]], Scores]
"""Maps rows and one answer per row to scores by name, one per row."""


@dataclass(frozen=True)
class Metric:
    """A way to score generated answers.

    Attributes
    ----------
    name : str
        The headline metric: a key of the result of ``score``, or ``"loss"``.
    score : callable or None
        None if nothing is generated and only loss and perplexity are reported.
    compares_text : bool
        Whether an answer is compared with the text of the reference, which takes no time.
    """

    name: str
    score: Score | None
    compares_text: bool = False


def score_text(rows: Rows, answers: Sequence[str]) -> list[float]:
    """1 if the answer is the reference, apart from white space at both ends."""
    return [float(a.strip() == row["answer"].strip()) for row, a in zip(rows, answers, strict=True)]


def score_value(rows: Rows, answers: Sequence[str]) -> list[float]:
    """1 if the answer is the reference, or ends with a final answer of the same value; see `final_answer`."""
    return [
        float(equal or equal_values(final_answer(row["answer"]), final_answer(answer)))
        for row, answer, equal in zip(rows, answers, score_text(rows, answers), strict=True)
    ]


_NUMBER = re.compile(r"[-+]?\$?(?:\d[\d,]*\.?\d*|\.\d+)")
_FRACTION = re.compile(rf"{_NUMBER.pattern}(?:/\d+)?")
# A number outside a formula: only words before it, and neither a letter nor an operator after it.
_OPERATORS = "+*/^\\\\√π×÷·⋅±<>≤≥≠"
# Commas inside it separate thousands; a comma after it ends a clause. Others are decimal commas or separate a list.
_AMOUNT = r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)"
_QUANTITY = re.compile(
    rf"(?:[^\d({{.{_OPERATORS}-]*(?<![a-zA-Z_]))?({_AMOUNT}),?"
    rf"(?!\s*[-({{,\d²³½{_OPERATORS}]|\s*[–:]\s*\d|\.\d|[a-zA-Z]).*",
    re.DOTALL,
)
_ARROW = re.compile("=>|->|⇒|→")
_IN_BRACKETS = re.compile(r"^\s*\(\s*([-+]?\$?[\d.]+)\s*\)")  # no comma: that may be a pair
# Text after GSM8K's mark ####, which also makes headings: a number alone, or one with words around it.
_MARKED = re.compile(r"(?<!#)####(?!#)[ \t*]*([^\n]*)")
_ALONE = re.compile(r"\(?[-+]?\s*\\?[$€£]?\s*[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?\s*\\?%?\)?")
_HEADING = re.compile(r"\d+\s*(?:\\?[.):]|[-–])\s+\S")
_LED = re.compile(rf"(?:[A-Za-z][A-Za-z ]*[:=]\s*)?{_ALONE.pattern}")
_ANNOUNCED = re.compile(r"answer\s+is\s*:?\s*", re.IGNORECASE)
# Markdown's emphasis: unlike in a formula, its asterisks stand between a space or a bracket and a word.
_EMPHASIS = re.compile(r"(?<![^\s(\[:#\"'])(\*{1,3})(?=[^\s*])(.*?)(?<=[^\s*])\1(?![\w*(\\{])")


def final_answer(text: str) -> str:
    r"""Extract the answer that a worked solution ends with, as it is written there; empty if there is none.

    The first of these that exists: the last ``\boxed{...}`` (MATH); the text after ``####`` (GSM8K): the first number,
    or the last line, but no heading; the text after the last ``answer is`` that a value follows (MetaMathQA); the last
    number or fraction. Asterisks for emphasis are removed.

    Examples
    --------
    >>> final_answer("She has 3 + 4 = 7 apples.\n#### 7")
    '7'
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    text = _EMPHASIS.sub(r"\2", text.replace("\N{MINUS SIGN}", "-"))
    if marked := _marked_answer(text):
        return marked
    if announced := _ANNOUNCED.split(text)[1:]:
        return _announced_answer(announced)
    numbers = _FRACTION.findall(text)
    return numbers[-1] if numbers else ""


def _marked_answer(text: str) -> str:
    """The text after ``####``: the first number, else the last line, else a number among words."""
    lines = [line.strip(" \t*") for line in _MARKED.findall(text)]
    alone = next(filter(_ALONE.fullmatch, lines), "")
    if alone or not lines:
        return alone
    if "####" in text.rstrip().rpartition("\n")[2]:
        return lines[-1]
    return next((line for line in lines if _LED.match(line) and not _HEADING.match(line)), "")


def _announced_answer(parts: Sequence[str]) -> str:
    """The text after the last ``answer is``, or after an earlier one on the same line if the last has no value."""
    lines = [part.partition("\n")[0].strip() for part in parts]
    for index in range(len(parts) - 1, -1, -1):
        if re.search(r"[\d\\]", lines[index]):
            return lines[index]
        if index and "\n" in parts[index - 1]:
            break
    return lines[-1]


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}``, braces matched; None if there is none.

    The content of ``\boxed 5``, without braces, ends at the next ``$``.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].partition("box")[2].removeprefix("ed")
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    depth = 0
    for end, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return rest[1:end].strip()
    return None  # the text ends before the brace does


def equal_values(reference: str, answer: str) -> bool:
    """Whether two results of `final_answer` have the same value; False if either is empty.

    They have if their `plain_latex` is equal; or if the reference is a number and the answer has the same number among
    words, after its last equals sign: ``"7.0 apples"``, ``"(7)"`` and ``"3 + 4 = 7"`` are 7, ``"7/2"`` and ``"7x"`` are
    not. A library with algebra, math-verify 0.9, takes ``"7²"``, ``"7½"`` and ``"7–9"`` for 7. Here answers that differ
    by more than notation are different, as in the published evaluation of MATH.
    """
    reference, answer = (text.replace("\N{MINUS SIGN}", "-") for text in (reference, answer))
    expected, given = plain_latex(reference), plain_latex(answer)
    if expected and _HALVES.get(expected, expected) == _HALVES.get(given, given):
        return True
    last = _IN_BRACKETS.sub(r"\1", _ARROW.sub("=", answer).rpartition("=")[2].replace("\\$", "$"))
    number, quantity = None if "," in expected else _number(expected), _QUANTITY.fullmatch(last)
    return number is not None and quantity is not None and _number(quantity.group(1)) == number


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


_GROUPED = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


def _without_thousands(match: re.Match[str]) -> str:
    """Remove commas between thousands, unless the text may be a list: ``(2,100)`` may be two numbers."""
    text = match.group()
    in_numbers = sum(number.count(",") for number in _GROUPED.findall(text))
    return text if re.search(r"[(\[]", text) or in_numbers < text.count(",") else text.replace(",", "")


# Rewrites, in this order, that make one spelling of different ways to write a value.
_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\s*\\\\\s*", r"\\\\"),  # a new row of a matrix
    (r"(?<!\\)\\[()\[\]]", ""),
    (r"\\!\s*", ""),
    (r"\\(left|right|,|;|:|quad|qquad| )", ""),
    (r"\{,\}", ","),
    (r"(?s)\A.*\Z", _without_thousands),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\\$|\$", ""),
    (r"\\%|%", ""),
    (r"\^\s*(\{\\circ\}|\\circ)", ""),
    (r"\\(text|mbox|mathrm)\{\s+[^{}]*\}(\^\{?\d+\}?)?\s*$", ""),  # a unit
    (r"\\(text|mbox|mathrm|textbf)\{\s*((?:[^{}])*?)\s*\}", r"\2"),
    (r"\s+", ""),
    (r"\.$", ""),
    (r"^[a-zA-Z]=", ""),
    (r"(?<!\d)\.(\d)", r"0.\1"),
    (r"\\sqrt(\w)", r"\\sqrt{\1}"),
    (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
    (r"\\frac(\w)\{", r"\\frac{\1}{"),
    (r"\\frac\{([^{}]*)\}(\w)", r"\\frac{\1}{\2}"),
    (r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
)


def plain_latex(text: str) -> str:
    r"""Normalize the notation of a final answer: ``\dfrac12`` becomes ``\frac{1}{2}``, ``x = 5`` and ``5\%`` become 5.

    Notation only, as in the published evaluation of MATH: no algebra, ``x + 1`` and ``1 + x`` stay different.
    """
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


_HALVES = {"0.5": "\\frac{1}{2}"}  # as in the published evaluation of MATH: no other fraction


def _name_scores(
    name: str, score: Callable[[Rows, Sequence[str]], list[float]], rows: Rows, answers: Sequence[str]
) -> Scores:
    return {name: score(rows, answers)}


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", None),
    "exact_match": Metric("exact_match", partial(_name_scores, "exact_match", score_text), compares_text=True),
    "final_answer": Metric("exact_match", partial(_name_scores, "exact_match", score_value), compares_text=True),
    "accuracy": Metric("accuracy", partial(_name_scores, "accuracy", score_text)),
}
