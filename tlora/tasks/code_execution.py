"""Run programs written by a model, each in its own process with limits: the metric of HumanEval and MBPP."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

_RUNNER = Path(__file__).with_name("code_execution_worker.py")
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some interpreters do not start without these
_WALL = 20  # limit on wall time, in multiples of the CPU time: no program fails because the machine is busy
_REPORT_BYTES = 4096  # below the capacity of a pipe, so that writing a report never waits for a reader


@dataclass(frozen=True)
class ProgramLimits:
    """Limits on the resources of a program.

    Attributes
    ----------
    seconds : float
        CPU time, rounded up to whole seconds. Wall time may be twenty times as long: a busy machine fails no program,
        and one that sleeps is stopped.
    memory, file_bytes : int
        Bytes of address space, including about 20 MB for the interpreter, and of the largest file it may write.
    """

    seconds: float = 3.0
    memory: int = 1 << 30
    file_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its last line (an early ``sys.exit(0)`` is no pass), and else why not."""

    passed: bool
    reason: str = ""


def run_program(program: str, limits: ProgramLimits | None = None) -> Outcome:
    """Run a Python program to its end, in its own process and folder, with limits.

    The interpreter sees the standard library, but neither the environment nor installed packages. The program has an
    empty temporary folder and no input, and its output is discarded. It can neither start processes nor open
    connections, and is killed with its whole process group when its time is up.

    This is not a security sandbox. The limits stop accidents: endless loops, memory bombs, fork bombs, floods of
    output. A program with ill intent has the rights of the user who runs it. Run code from a model that you do not
    trust in a container or a virtual machine.
    """
    if os.name != "posix":
        raise NotImplementedError(
            f"running programs with limits needs a POSIX system, this is {os.name!r}: use Linux or macOS"
        )
    limits = limits or ProgramLimits()
    token = secrets.token_hex(16)
    order = {"program": program, "token": token} | asdict(limits) | {"seconds": math.ceil(limits.seconds)}
    with tempfile.TemporaryDirectory(prefix="tlora-program-") as folder, tempfile.TemporaryFile() as orders:
        orders.write(json.dumps(order).encode())
        orders.seek(0)
        report, ended = _run(folder, orders.fileno(), _WALL * limits.seconds)
    return _outcome(report, token, ended, limits)


def run_programs(programs: Iterable[str]) -> list[Outcome]:
    """Run programs in parallel, one per processor of this process; see `run_program`."""
    _check_runner()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(processors) as pool:
        return list(pool.map(run_program, programs))


@lru_cache
def _check_runner() -> None:
    """Refuse to score if a separate interpreter does not start: every program would count as wrong."""
    outcome = run_program("pass")
    if not outcome.passed:
        raise RuntimeError(f"no program can be run here, not even an empty one ({outcome.reason}): {sys.executable} -I")


def _run(folder: str, orders: int, seconds: float) -> tuple[bytes, int | None]:
    """The runner's report, and its return code; None if its time was up."""
    reader, writer = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                # -I: no environment, no user packages; -S: no installed packages.
                [sys.executable, "-I", "-S", "-B", str(_RUNNER), str(writer)],
                stdin=orders,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                cwd=folder,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                start_new_session=True,
            )
        finally:
            os.close(writer)
        ended = _wait(process, seconds)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):  # another process holds the pipe open and wrote nothing
            return os.read(reader, _REPORT_BYTES), ended
        return b"", ended
    finally:
        os.close(reader)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(report: bytes, token: str, ended: int | None, limits: ProgramLimits) -> Outcome:
    if ended is None or ended in (-signal.SIGXCPU, -signal.SIGKILL):
        reason = f"stopped: more than {limits.seconds:g} s of CPU time, or {_WALL} times that on the clock"
        return Outcome(False, reason)
    before, is_reported, reason = report.decode(errors="replace").partition(token)
    if before or not is_reported:
        return Outcome(False, f"ended by itself before its last line (exit status {ended})")
    return Outcome(not reason, reason)
