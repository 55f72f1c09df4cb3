"""A write that is killed, at one change to the disk after the other."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


def kills(write: Callable[[], object], begin: Callable[[], object]) -> Iterator[int]:
    """Begin anew, and kill the write before its first change to the disk, then before its second, until it ends.

    Yields
    ------
    int
        How many changes it got to make.
    """
    for at in count():
        begin()
        if not _killed(write, at):
            return
        yield at


def _killed(write: Callable[[], object], at: int) -> bool:
    """Write in a process of its own; whether it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which have no part in this
        child = os.fork()
    if child == 0:
        try:
            _die_after(at)
            write()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _die_after(changes: int) -> None:
    left = iter(range(changes))

    def counted(change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*args, **kwargs)

    for name in _CHANGES:
        setattr(os, name, partial(counted, getattr(os, name)))
