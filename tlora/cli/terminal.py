"""Color on a terminal, and lines in place of progress bars everywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import typer

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal, such as in a log."""


def styled(text: str, *, err: bool = False, **style: Any) -> str:
    """Return a text in a style of `typer.style`; plain without a terminal, or if ``NO_COLOR`` is set."""
    is_terminal = (sys.stderr if err else sys.stdout).isatty() and os.environ.get("TERM") != "dumb"
    return typer.style(text, **style) if is_terminal and not os.environ.get("NO_COLOR") else text


@contextlib.contextmanager
def bars_as_lines() -> Iterator[None]:
    """Inside the block, print a line of progress every 30 seconds in place of bars, unless stderr is a terminal.

    ``TQDM_DISABLE`` turns them off as it does bars.
    """
    if sys.stderr.isatty() or os.environ.get("TQDM_DISABLE"):
        yield
        return
    from tlora.utils.progress import report_progress

    last = time.monotonic()

    def say(words: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            typer.echo(f"  {words}: {done:,}{'' if total is None else f' of {total:,}'}", err=True)

    with report_progress(say):
        yield
