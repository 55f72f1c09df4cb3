"""What an answer is worth: pure functions from texts to scores, and the table of metrics by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

from tlora.tasks.code_execution import run_programs

Rows = Sequence[Mapping[str, Any]]
Scores = dict[str, list[float]]
Score = Callable[[Rows, Sequence[str]], Scores]
"""From rows and one answer a row to scores by name, one a row."""


@dataclass(frozen=True)
class Metric:
    """A way to score generated answers.

    Attributes
    ----------
    name : str
        The headline: a key of what ``score`` returns, or ``"loss"``.
    score : callable or None
        From the rows of a split and one answer a row to a list of scores by metric, one a row; None where
        nothing is generated and only loss and perplexity are reported.
    """

    name: str
    score: Score | None


def same_text(rows: Rows, answers: Sequence[str]) -> list[float]:
    """1 where the answer is the reference, white space at both ends aside."""
    return [float(a.strip() == row["answer"].strip()) for row, a in zip(rows, answers, strict=True)]


def same_value(rows: Rows, answers: Sequence[str]) -> list[float]:
    """1 where the answer is the reference, or ends with a final answer of the same value; see `final_answer`."""
    return [
        float(alike or equal_values(final_answer(row["answer"]), final_answer(answer)))
        for row, answer, alike in zip(rows, answers, same_text(rows, answers), strict=True)
    ]


_NUMBER = re.compile(r"[-+]?\$?(?:\d[\d,]*\.?\d*|\.\d+)")
_FRACTION = re.compile(rf"{_NUMBER.pattern}(?:/\d+)?")
# A number that is not part of a formula: before it only words, after it neither a letter nor an operator.
_OPERATORS = "+*/^\\\\√π×÷·⋅±<>≤≥≠"
# Its commas stand before three digits each, but for one that ends a clause; others are decimal ones, or of a list.
_AMOUNT = r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)"
_QUANTITY = re.compile(
    rf"(?:[^\d({{.{_OPERATORS}-]*(?<![a-zA-Z_]))?({_AMOUNT}),?"
    rf"(?!\s*[-({{,\d²³½{_OPERATORS}]|\s*[–:]\s*\d|\.\d|[a-zA-Z]).*",
    re.DOTALL,
)
_ARROW = re.compile("=>|->|⇒|→")
_IN_BRACKETS = re.compile(r"^\s*\(\s*([-+]?\$?[\d.]+)\s*\)")  # without a comma: that may be a pair
# What stands behind the four signs of GSM8K, which make headings too: a number alone, or one with words around it.
_MARKED = re.compile(r"(?<!#)####(?!#)[ \t*]*([^\n]*)")
_ALONE = re.compile(r"\(?[-+]?\s*\\?[$€£]?\s*[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?\s*\\?%?\)?")
_HEADING = re.compile(r"\d+\s*(?:\\?[.):]|[-–])\s+\S")
_LED = re.compile(rf"(?:[A-Za-z][A-Za-z ]*[:=]\s*)?{_ALONE.pattern}")
_ANNOUNCED = re.compile(r"answer\s+is\s*:?\s*", re.IGNORECASE)
# Markdown's emphasis: unlike signs of a formula, its asterisks stand between a space or a bracket and a word.
_EMPHASIS = re.compile(r"(?<![^\s(\[:#\"'])(\*{1,3})(?=[^\s*])(.*?)(?<=[^\s*])\1(?![\w*(\\{])")


def final_answer(text: str) -> str:
    r"""The answer that a worked solution ends with, as it is written there.

    In this order: the last ``\boxed{...}`` (MATH); what follows ``####`` (GSM8K), the first number, or what is on
    the last line, and no heading; what follows the last ``answer is`` (MetaMathQA; no remark without a value after
    it, as "this answer is right"); the last number or fraction. Asterisks that emphasise are taken out.

    Parameters
    ----------
    text : str
        A solution.

    Returns
    -------
    str
        The answer; empty where there is none.

    Examples
    --------
    >>> final_answer("She has 3 + 4 = 7 apples.\n#### 7")
    '7'
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    text = text.replace("\N{MINUS SIGN}", "-")
    text = _EMPHASIS.sub(r"\2", text)
    marked = _marked(text)
    if marked:
        return marked
    announced = _ANNOUNCED.split(text)[1:]
    if announced:
        return _announced(announced)
    numbers = _FRACTION.findall(text)
    return numbers[-1] if numbers else ""


def _marked(text: str) -> str:
    """What follows ``####``: the first number; else what is on the last line; else a number among words."""
    lines = [line.strip(" \t*") for line in _MARKED.findall(text)]
    alone = next(filter(_ALONE.fullmatch, lines), "")
    if alone or not lines:
        return alone
    if "####" in text.rstrip().rpartition("\n")[2]:
        return lines[-1]
    return next((line for line in lines if _LED.match(line) and not _HEADING.match(line)), "")


def _announced(parts: Sequence[str]) -> str:
    """The answer among what follows each ``answer is``: of the last, or before it on its line if it has no value."""
    lines = [part.partition("\n")[0].strip() for part in parts]
    for place in range(len(parts) - 1, -1, -1):
        if re.search(r"[\d\\]", lines[place]):
            return lines[place]
        if place and "\n" in parts[place - 1]:
            break
    return lines[-1]


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` or ``\fbox{...}`` holds, braces matched; None where there is none.

    Parameters
    ----------
    text : str
        LaTeX. ``\boxed 5``, without braces, holds what follows up to the next ``$``.

    Returns
    -------
    str or None
        Its content.
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
    """Whether two final answers have the same value.

    Parameters
    ----------
    reference, answer : str
        From `final_answer`. They are equal as `plain_latex`; or where the reference is a number and the answer
        is one among words, after its last equals sign: ``"7.0 apples"``, ``"(7)"`` and ``"3 + 4 = 7"`` are 7,
        ``"7/2"`` and ``"7x"`` are not.

    Returns
    -------
    bool
        False where either is empty.

    Notes
    -----
    A library that knows algebra, math-verify 0.9, takes ``"7²"``, ``"7½"`` and ``"7–9"`` for 7. Here what differs by
    more than notation is different, as in the published evaluation of MATH.
    """
    reference, answer = (text.replace("\N{MINUS SIGN}", "-") for text in (reference, answer))
    one, other = plain_latex(reference), plain_latex(answer)
    if one and _HALVES.get(one, one) == _HALVES.get(other, other):
        return True
    last = _IN_BRACKETS.sub(r"\1", _ARROW.sub("=", answer).rpartition("=")[2].replace("\\$", "$"))
    number, found = None if "," in one else _number(one), _QUANTITY.fullmatch(last)
    return number is not None and found is not None and _number(found.group(1)) == number


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


_GROUPED = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


def _without_thousands(found: re.Match[str]) -> str:
    """Numbers without commas between thousands, where the text can be no list: ``(2,100)`` may be two numbers."""
    text = found.group()
    in_numbers = sum(number.count(",") for number in _GROUPED.findall(text))
    return text if re.search(r"[(\[]", text) or in_numbers < text.count(",") else text.replace(",", "")


# What is taken out or rewritten, in this order, so that different ways to write a value become one.
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
    r"""A final answer with differences in notation taken out.

    Parameters
    ----------
    text : str
        LaTeX, e.g. ``\dfrac12``, ``0.5``, ``x = 5``, ``10\%``.

    Returns
    -------
    str
        E.g. ``\frac{1}{2}``, ``0.5``, ``5``, ``10``.

    Notes
    -----
    Notation only, as in the published evaluation of MATH: no algebra, ``x + 1`` and ``1 + x`` stay different.
    """
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


_HALVES = {"0.5": "\\frac{1}{2}"}  # as in the published evaluation of MATH: this one, and no other fraction

# A block of any language: what stands before its fence, and its lines up to a fence at either end of one.
_FENCED = re.compile(r"^([^\n`]*)`{3,}[^\n`]*\n(.*?)(?:^[ \t]*```|```(?=\s|$)|\Z)", re.DOTALL | re.MULTILINE)
_GOES_ON = re.compile(r"\s*?^( {2,}|\t)(?!\s*(def |`))\S", re.MULTILINE)  # an answer that is the rest of the body
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
# Where a completion of a function's body goes on to something else.
_AFTER_BODY = re.compile(r"\n(?=(?:class|def|if|print|for|while|assert|import|from)\b|[#@`])")


def build_program(row: Mapping[str, Any], answer: str) -> str:
    """The program that decides whether an answer solves a task of HumanEval or MBPP.

    Parameters
    ----------
    row : mapping
        ``code`` (what the answer completes, may be empty), ``entry_point`` (name of the function, may be
        empty) and ``test`` (statements that raise where it is wrong).
    answer : str
        Code, or text with code in fenced blocks, of which the first that defines the function counts, else the
        first; either whole functions or the rest of the body.

    Returns
    -------
    str
        Source text.
    """
    defined = re.compile(rf"^\s*def\s+{re.escape(row['entry_point'])}\b", re.MULTILINE)
    fenced = [_unindented(*found) for found in _FENCED.findall(answer)]
    goes_on = bool(row["code"] and _GOES_ON.match(answer)) and not any(map(defined.search, fenced))
    blocks = [answer] if goes_on else fenced or [answer]
    code = next(filter(defined.search, blocks), blocks[0])
    if row["code"] and (goes_on or not defined.search(code)):
        body = _AFTER_BODY.split(code, maxsplit=1)[0]
        return f"{row['code']}{body}\n{row['test']}"
    # The given start may import what the function uses; a function defined again takes its place.
    future = "\n".join(_FUTURE.findall(code))  # which has to come first
    return f"{future}\n{row['code']}\n{_FUTURE.sub('', code)}\n{row['test']}"


def _unindented(before: str, code: str) -> str:
    """Code as far in as its fence, which may stand in a list, moved back; with what is further in, as a body is."""
    indent = re.sub(r"\S", " ", before)
    lines = code.splitlines(keepends=True)
    inside = all(line.startswith(indent) for line in lines if line.strip())
    return "".join(line.removeprefix(indent) for line in lines) if inside else code


def passes(rows: Rows, answers: Sequence[str]) -> list[float]:
    """1 where the program of an answer runs to its end; see `tlora.tasks.code_execution.run_program`."""
    outcomes = run_programs(build_program(row, answer) for row, answer in zip(rows, answers, strict=True))
    return [float(outcome.passed) for outcome in outcomes]


def _metric(name: str, score: Callable[[Rows, Sequence[str]], list[float]]) -> Metric:
    return Metric(name, partial(_named, name, score))


def _named(
    name: str, score: Callable[[Rows, Sequence[str]], list[float]], rows: Rows, answers: Sequence[str]
) -> Scores:
    return {name: score(rows, answers)}


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", None),
    "exact_match": _metric("exact_match", same_text),
    "final_answer": _metric("exact_match", same_value),
    "accuracy": _metric("accuracy", same_text),
    "pass@1": _metric("pass@1", passes),
}
