"""What a page is built of: sections of paragraphs, pictures, tables and code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from viz.reports import formatting


@dataclass(frozen=True)
class Interval:
    """A cell that shows a number within its interval: all three as parts of the width, from 0 to 1."""

    low: float
    value: float
    high: float
    words: str


@dataclass(frozen=True)
class Bar:
    """A cell that shows a share, from 0 to 1, as the length of a bar."""

    value: float
    words: str


Cell = str | Interval | Bar


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """Something to type."""

    kind: ClassVar[str] = "code"
    caption: str
    code: str


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: ``src`` is a data URI, ``alt`` says what it shows, sizes are in CSS pixels."""

    kind: ClassVar[str] = "picture"
    src: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Column:
    """A column of a table: of which column of a frame, what it is called, and how its values are written."""

    key: str
    title: str
    form: Callable[[Any], Cell] = str

    @property
    def is_number(self) -> bool:
        """Whether the column is aligned as numbers are."""
        return self.form is not str


@dataclass(frozen=True)
class Table:
    """A table; ``folded`` ones are opened by the reader, facts have two columns without a heading."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: list[list[Cell]]
    folded: bool = False
    is_facts: bool = False


Part = Text | Code | Picture | Table


@dataclass(frozen=True)
class Section:
    """A chapter of the page.

    Attributes
    ----------
    key : str
        Its anchor.
    title : str
        Its heading.
    about : str
        What is looked at, in a sentence or two.
    parts : list of Part
        What was found; empty where there is nothing to show.
    missing : str
        Code that makes what is missing.
    """

    key: str
    title: str
    about: str
    parts: list[Part] = field(default_factory=list)
    missing: str = ""


def table(frame: pd.DataFrame, caption: str, columns: Sequence[Column], *, folded: bool = False) -> Table:
    """A table of some columns of a frame."""
    cells = [[column.form(value) for value in frame[column.key]] for column in columns]
    return Table(caption, columns, [list(row) for row in zip(*cells, strict=True)], folded)


def facts(caption: str, values: dict[str, str]) -> Table:
    """A table of names and what is to be said of them; what is empty is left out."""
    rows: list[list[Cell]] = [[name, value] for name, value in values.items() if value]
    return Table(caption, [Column("name", ""), Column("value", "")], rows, is_facts=True)


def bar(share: float) -> Cell:
    """A share in percent with a bar of that length."""
    return formatting.DASH if math.isnan(share) else Bar(min(max(share, 0.0), 1.0), formatting.percent(share))
