"""What panels are made of: paragraphs, tables, charts and code, as JSON values that the browser draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from viz import style

Part = dict[str, Any]
Column = tuple[str, str, Callable[[Any], str]]
"""Key of a frame's column, its title, and how a value is written; ``str`` marks a column of text."""


def text(words: str) -> Part:
    """A paragraph."""
    return {"kind": "text", "text": words}


def code(caption: str, lines: str) -> Part:
    """Code to copy."""
    return {"kind": "code", "caption": caption, "code": lines}


def facts(caption: str, values: Mapping[str, str]) -> Part:
    """A table of names and values; empty values are left out."""
    return texts(caption, [], [[name, value] for name, value in values.items() if value], left=(0, 1))


def texts(
    caption: str, head: list[str], rows: list[list[str]], left: Sequence[int] = (0,), folded: bool = False
) -> Part:
    """A table of texts, of which the columns ``left`` are aligned to the left."""
    part = {"kind": "table", "caption": caption, "head": head, "rows": rows}
    return part | {"text": list(left), "folded": folded}


def table(frame: pd.DataFrame, caption: str, columns: Sequence[Column], folded: bool = False) -> Part:
    """A table of some columns of a frame; a title that is a word of ``viz/glossary.py`` explains itself on hover."""
    cells = [[form(value) for value in frame[key]] for key, _, form in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    words = [i for i, (_, _, form) in enumerate(columns) if form is str]
    return texts(caption, [title for _, title, _ in columns], rows, words, folded)


def chart(caption: str, lines: Sequence[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]) -> Part:
    """Lines on axes: each line is made by `line`; an axis has ``label`` and may be ``log`` or ``percent``.

    ``min`` and ``max`` of an axis are those of the lines unless it gives them.
    """
    return {"kind": "chart", "caption": caption, "lines": list(lines), "x": x, "y": y}


def line(label: str, x: ArrayLike, y: ArrayLike, **look: Any) -> dict[str, Any]:
    """A labeled line without the points that are not finite; ``look`` may hold ``dots``, ``dash`` or ``thin``."""
    points = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    points = points[np.isfinite(points).all(1)]
    return {"label": label, "points": [[shorten(a), shorten(b)] for a, b in points]} | look


def bar(words: str, done: int, total: int | None) -> dict[str, Any]:
    """The progress of something under way: how many of its items are done, and their number if it is known."""
    return {"words": words, "done": done, "total": total}


def shorten(value: float | None, digits: int = 4) -> float | None:
    """The value in so many significant digits, which is all that is shown; None if unknown or not finite."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.{digits}g}")


def shorten_all(values: ArrayLike, digits: int = 3) -> list[float | None]:
    """Each value in so many significant digits."""
    return [shorten(value, digits) for value in np.asarray(values, float)]


def intervals(frame: pd.DataFrame, low: str, high: str, form: Callable[[float], str]) -> list[str]:
    """The interval of each row in words, ``"3.1 % to 4.2 %"``; a dash where there is none, as of one sample."""
    ends = zip(frame[low], frame[high], strict=True)
    return [style.DASH if math.isnan(a) else f"{form(a)} to {form(b)}" for a, b in ends]


number, percent, whole = style.number, style.percent, style.whole
"""How cells are written; NaN becomes a dash."""
