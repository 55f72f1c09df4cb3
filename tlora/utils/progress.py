"""Progress bars: drawn by tqdm, or reported to a listener such as a widget."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as Bar

from tlora.utils.front_end import has_front_end, kernel

Listener = Callable[[str, int, int | None], None]
"""Called with what is being done, how many of its items are done, and their number if it is known."""

_report: ContextVar[Listener | None] = ContextVar("report", default=None)
_stopping: ContextVar[threading.Event | None] = ContextVar("stopping", default=None)
_purpose: ContextVar[str] = ContextVar("purpose", default="")
_stays: ContextVar[bool] = ContextVar("stays", default=True)


def is_shown(show: bool) -> bool:
    """Whether bars are shown to a person.

    Not if the environment has ``TQDM_DISABLE=1``, which tqdm overlooks in notebooks. Not if a tool executes a notebook:
    a bar would be stored with the output of its cell, and nbval would find an output that differs every time.
    """
    is_watched = kernel() is None or has_front_end()
    return show and is_watched and not os.environ.get("TQDM_DISABLE")


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, desc: str = "", **options: Any) -> Bar:
    """A bar of tqdm over the items, if it is shown; within `report_progress` the listener gets all of them."""
    words = " ".join(filter(None, [desc, _purpose.get()]))
    options = {"leave": _stays.get()} | options
    options |= {"desc": words, "miniters": 0}  # so that `note_progress` redraws it between two items
    if (report := _report.get()) is not None:
        return _ReportedBar(items, report, _stopping.get(), **options)
    return tqdm(items, disable=not is_shown(show), **options)


def note_progress(bar: Bar, text: str) -> None:
    """Write what happens within one item beside the bar, which moves meanwhile."""
    bar.set_postfix_str(text, refresh=False)
    bar.update(0)


@contextlib.contextmanager
def bars_for(purpose: str) -> Iterator[None]:
    """Add a purpose to what the bars of this thread say inside the block."""
    token = _purpose.set(purpose)
    try:
        yield
    finally:
        _purpose.reset(token)


@contextlib.contextmanager
def vanishing_bars() -> Iterator[None]:
    """Remove the bars of this thread when they have ended, inside the block."""
    token = _stays.set(False)
    try:
        yield
    finally:
        _stays.reset(token)


class StoppedError(Exception):
    """What a bar stands for was stopped by whoever listens to it."""


@contextlib.contextmanager
def report_progress(report: Listener, stopping: threading.Event | None = None) -> Iterator[None]:
    """Call ``report`` inside the block where this thread would draw a bar, whether bars are shown or not.

    Once ``stopping`` is set, the next step of a bar raises `StoppedError`.
    """
    tokens = _report.set(report), _stopping.set(stopping)
    try:
        yield
    finally:
        _report.reset(tokens[0])
        _stopping.reset(tokens[1])


class _ReportedBar(Bar):  # type: ignore[misc]
    """A bar that is reported, at most three times a second."""

    def __init__(
        self, items: Iterable[Any] | None, report: Listener, stopping: threading.Event | None, **options: Any
    ) -> None:
        self._report, self._stopping = report, stopping
        super().__init__(items, file=io.StringIO(), disable=False, mininterval=0.3, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance, or end if that was asked for; not while it is drawn, when tqdm holds the lock of all bars."""
        moved: bool | None = super().update(n)
        if self._stopping is not None and self._stopping.is_set():
            raise StoppedError
        return moved

    def display(self, *args: Any, **kwargs: Any) -> None:
        """Report in place of drawing."""
        self._report(", ".join(filter(None, [self.desc.removesuffix(": "), self.postfix])), int(self.n), self.total)
