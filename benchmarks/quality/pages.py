"""Tables and pictures on the pages of the documentation, each made from the runs of a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tlora.numerics.statistics import bootstrap_means, interval

RESAMPLES = 2000
Tables = Mapping[str, Callable[[], str]]
"""Functions that make a table in Markdown, by the title of the table."""


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *lines])


def difference_text(one: NDArray[np.float64], other: NDArray[np.float64], digits: int = 3) -> str:
    """Mean of paired differences with its 95 % interval, by bootstrap over samples."""
    apart = (one - other)[:, None]
    low, high = interval(bootstrap_means(apart, RESAMPLES, 0), 0.95)
    mean, least, most = (f"{value:+.{digits}f}" for value in (apart.mean(), low[0], high[0]))
    return f"{mean} ({least} to {most})"


def replace_block(begin: str, end: str, block: str, text: str) -> str:
    """The text of a page with a block in place of what is between two marks."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.split(end)[1]}"


def fill_blocks(text: str, name: str, tables: Tables) -> str:
    """The text of a page with the tables of ``benchmarks.quality.NAME``, each between its marks."""
    for title, table in tables.items():
        begin = f"<!-- {name}, {title}: python -m benchmarks.quality.{name} --table -->"
        text = replace_block(begin, f"<!-- end of {name}, {title} -->", table(), text)
    return text


def publish(page: Path | None, name: str, tables: Tables) -> None:
    """Write tables to their page, if they have one, and print them."""
    tables = {title: cache(table) for title, table in tables.items()}
    if page is not None:
        page.write_text(fill_blocks(page.read_text(), name, tables))
    print(*(f"{title}\n{table()}\n" for title, table in tables.items()), sep="\n")


def digest_text(text: str) -> str:
    """16 hexadecimal digits that identify a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_figure(figure: Figure, path: Path, digest: str) -> None:
    """Write a picture with the digest of the numbers that it shows: a test compares it with the stores."""
    figure.savefig(path, dpi=110, metadata={"Description": digest})
