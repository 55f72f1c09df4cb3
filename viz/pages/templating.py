"""Templates of the pages: HTML that escapes what is put into it, and Markdown with filters that do."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from viz.pages.parts import Cell, Table


@cache
def template(name: str) -> Template:
    """A template of this package; what is put into HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("viz.pages"),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "fenced": fenced, "markdown": markdown}
    return environment.get_template(name)


def escaped(text: object) -> str:
    """Text on one line in which Markdown and HTML mean nothing."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", one_line.replace("&", "&amp;").replace("<", "&lt;"))


def fenced(code: str, language: str) -> str:
    """A block of code, fenced by more backticks than are in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}{language}\n{code}\n{fence}"


def markdown(part: Table) -> str:
    """A table whose cells are all text."""
    titles: list[Cell] = [column.title for column in part.columns]
    rows = [titles, *part.rows]
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]
    rule = "|" + "|".join("--:" if column.is_number else "---" for column in part.columns) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
