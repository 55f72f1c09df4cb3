"""The child process of `tlora.tasks.code_execution`: a separate script that imports only the standard library.

It reads its orders from standard input, sets the limits, runs the program, and writes the token and the reason of a
failure to the file descriptor in its argument. The token is written only after the program's last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types

# Audit events of the interpreter; a hook can refuse them, and no program can remove the hook.
_REFUSED = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.kill", "os.killpg",
            "subprocess.Popen", "pty.spawn", "socket.__new__", "ctypes.dlopen")  # fmt: skip


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in _REFUSED:
        raise PermissionError(f"{event} is not allowed in programs under test")


def _no_fork(*_: object) -> int:
    raise PermissionError("programs under test must not start processes")


def _limit(name: str, value: int) -> None:
    import resource

    # Not every system has every limit (macOS: address space), and none may be raised above the current one.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        resource.setrlimit(getattr(resource, name), (value, value))


def main() -> None:
    """Run the program of the orders on standard input."""
    import _posixsubprocess

    orders = json.load(sys.stdin)
    _limit("RLIMIT_CPU", orders["seconds"])
    _limit("RLIMIT_AS", orders["memory"])
    _limit("RLIMIT_FSIZE", orders["file_bytes"])
    _limit("RLIMIT_CORE", 0)
    sys.argv = ["program.py"]
    sys.addaudithook(_refuse)
    _posixsubprocess.fork_exec = _no_fork  # raises no audit event
    reason = ""
    try:
        # A module of its own, where pickle and dataclasses look its classes up; not __main__, as in a script.
        sys.modules["program"] = module = types.ModuleType("program")
        exec(compile(orders["program"], "program.py", "exec"), module.__dict__)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"[:500]
    os.write(REPORT, (orders["token"] + reason).encode(errors="replace"))


if __name__ == "__main__":
    REPORT = int(sys.argv[1])
    main()
