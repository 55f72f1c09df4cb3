"""Programs run to their end within their limits, or do not pass."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tlora.tasks.code_execution import Outcome, ProgramLimits, run_program, run_programs

pytestmark = pytest.mark.posix
QUICK = ProgramLimits(seconds=0.5, memory=1 << 28)


def test_a_program_that_runs_to_its_last_line_passes():
    assert run_program("import math\nassert math.sqrt(4) == 2") == Outcome(True)
    assert run_program("") == Outcome(True)
    assert run_program("if __name__ == '__main__':\n    print(input())") == Outcome(True), "of a script, not of a test"
    threads = "from concurrent.futures import ThreadPoolExecutor\nassert ThreadPoolExecutor(2).submit(abs, -1).result()"
    assert run_program(threads) == Outcome(True)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("raise ValueError('\\udc80')", "ValueError: ?"),
        ("def f(:", "SyntaxError"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("import numpy", "ModuleNotFoundError"),
        ("input()", "EOFError"),
        # An exit is no pass, however it is made.
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended by itself"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_what_fails_or_ends_early_does_not_pass(program, reason):
    outcome = run_program(program, QUICK)
    assert not outcome.passed
    assert reason in outcome.reason


ENDLESS = {
    "loop": "while True: pass",
    "deaf": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "asleep": "import os, time\nopen(PLACE, 'w').write(str(os.getpid()))\ntime.sleep(60)",
    "in C": "9**9**9**9",
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()\nwhile True: pass",
}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to leave a process one processor")
def test_a_busy_machine_fails_no_program():
    """Eight programs of half a second share one processor: each takes four seconds on the clock."""
    program = "import time\nwhile time.process_time() < 0.5: pass"
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda _: run_program(program, ProgramLimits(seconds=1)), range(8)))
    finally:
        os.sched_setaffinity(0, allowed)
    assert outcomes == [Outcome(True)] * 8


def test_what_does_not_end_is_stopped_and_gone(tmp_path):
    place = tmp_path / "pid"
    programs = [f"PLACE = {str(place)!r}\n{program}" for program in ENDLESS.values()]
    start = time.monotonic()
    with ThreadPoolExecutor(len(programs)) as pool:
        outcomes = list(pool.map(lambda program: run_program(program, QUICK), programs))
    assert time.monotonic() - start < 30
    assert all(not outcome.passed and "stopped" in outcome.reason for outcome in outcomes)
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.read_text()), 0)


def test_memory_is_limited():
    assert run_program("x = []\nwhile True: x.append(bytearray(10**6))", QUICK).reason.startswith("MemoryError")


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing as m; p = m.get_context('spawn').Process(target=print); p.start(); p.join()",
        "import os; os.kill(os.getppid(), 9)",
        "import socket; socket.socket()",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_no_process_is_started_or_killed_and_no_connection_opened(program):
    outcome = run_program(program, QUICK)
    assert not outcome.passed
    assert "PermissionError" in outcome.reason


def test_much_output_fills_nothing_and_large_files_are_refused():
    assert run_program("for _ in range(50): print('x' * 10**6)").passed
    assert "File too large" in run_program("open('x', 'w').write('x' * 10**8)").reason


def test_a_report_cannot_be_made_up_or_flooded():
    forged = (
        "import os\nfor fd in range(3, 12):\n    try:\n        os.write(fd, b'0' * {size})\n"
        "    except OSError:\n        pass\nos._exit(0)"
    )
    for size in (32, 10**7):
        assert not run_program(forged.format(size=size), QUICK).passed


def test_the_folder_is_empty_and_gone_afterwards(tmp_path):
    place = tmp_path / "place"
    program = (
        "import os\nassert os.listdir() == []\nopen('file', 'w').write('x')\n"
        f"open({str(place)!r}, 'w').write(os.getcwd())\nassert not os.environ.get('HOME')"
    )
    assert run_program(program).passed
    assert not os.path.exists(place.read_text())
    assert os.listdir(tmp_path) == ["place"]


def test_programs_run_side_by_side_in_order():
    programs = ["x = 1", "assert False", "import time; time.sleep(1)", "x = 2"] * 2
    assert [outcome.passed for outcome in run_programs(programs)] == [True, False, True, True] * 2
    assert run_programs([]) == []


def test_without_limits_to_set_nothing_is_run(monkeypatch):
    monkeypatch.setattr("tlora.tasks.code_execution.os.name", "nt")
    with pytest.raises(NotImplementedError, match="POSIX"):
        run_program("x = 1")
