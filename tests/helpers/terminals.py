"""A command on a terminal of 80 columns, and what is to be seen on it at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence

_PIECES = re.compile(r"\x1b\[(\d*)[\d;]*([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def run_on_terminal(command: Sequence[str], columns: int = 80) -> str:
    """What a command writes to a terminal, which it must end well."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TQDM_DISABLE")}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment | {"TERM": "xterm"}) as process:
        os.close(its)
        written = b""
        while part := _read(ours):
            written += part
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


def _read(file: int) -> bytes:
    try:
        return os.read(file, 65536)
    except OSError:  # the command has ended
        return b""


def screen(written: str) -> list[str]:
    """The lines that are seen, without those that were overwritten; colors are left out."""
    lines, row, column = [""], 0, 0
    for count, code, control, text in _PIECES.findall(written):
        if code == "A":
            row = max(0, row - int(count or 1))
        elif control == "\r":
            column = 0
        elif control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in lines]
