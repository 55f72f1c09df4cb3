"""Deeds that are killed after a share of the processor time that they take.

A deed runs in a fork of a process that has imported everything and done nothing (torch computes no gradients in a fork
of one that has): the module of the deed says what is imported, by ``FORKS.set_forkserver_preload([__name__])``. By
processor time the moments are spread alike on a machine that has other things to do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

FORKS = multiprocessing.get_context("forkserver")
Deed = Callable[[Path], None]
ONE = threading.Lock()
"""A start asks all processes whether they have ended; the answer of each can be read only once."""


def forked(deed: Deed, folder: Path) -> Any:
    """The process that does it."""
    process = FORKS.Process(target=do, args=(deed, folder))
    with ONE:
        process.start()
    return process


def do(deed: Deed, folder: Path) -> None:
    """A deed, and how much processor time it took, or how it failed."""
    os.chdir(folder)
    try:
        deed(folder)
    except BaseException:
        (folder / "failure.txt").write_text(traceback.format_exc())
        raise
    (folder / "seconds.txt").write_text(f"{time.process_time()}")


def why(process: Any, folder: Path) -> str:
    """How a deed failed, if it could still say so."""
    said = folder / "failure.txt"
    return said.read_text() if said.exists() else f"ended with {process.exitcode}"


def used(process: int) -> float:
    """Seconds of processor time, an ended process infinitely many."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return float("inf")
    return float(times.user + times.system)


def whole(deed: Deed, folder: Path) -> float:
    """Do it undisturbed: how much processor time it takes, in seconds."""
    folder.mkdir(exist_ok=True)
    process = forked(deed, folder)
    process.join()
    assert process.exitcode == 0, why(process, folder)
    return float((folder / "seconds.txt").read_text())


def killed(deed: Deed, folder: Path, after: float) -> None:
    """Do it, and kill it after so many seconds of processor time; it may be done before."""
    folder.mkdir(exist_ok=True)
    process = forked(deed, folder)
    while used(process.pid) < after:
        time.sleep(0.001)
    time.sleep(0.01 * (after * 1e4 % 1))  # the clock of processor time ticks every 10 ms
    end(process, folder)


def killed_at(deed: Deed, folder: Path, pattern: str) -> None:
    """Do it, and kill it once a file of this pattern is in its folder."""
    process = forked(deed, folder)
    while process.is_alive() and not any(folder.glob(pattern)):
        time.sleep(0.001)
    end(process, folder)


def end(process: Any, folder: Path) -> None:
    """Kill a deed that may be done, but has not failed."""
    with ONE:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), why(process, folder)


def side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Watch over two at a time."""
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
