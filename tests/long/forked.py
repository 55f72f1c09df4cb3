"""Runs tests of several copies of the project, each in a process of its own that finds the libraries imported.

Run as a script. Each line on standard input is a JSON object with a ``folder``, ``arguments`` for pytest, and the
``seconds`` that they may take, if not as many as usual; each line on standard output is pytest's exit code (that of a
signal, negative, where a process did not end by itself). What the tests print goes to ``output.txt`` in their folder.
Importing torch, transformers, peft and datasets takes seconds, and nothing of the project is imported before the fork.
"""

import json
import os
import signal
import sys

import datasets  # noqa: F401
import peft  # noqa: F401
import pytest
import torch  # noqa: F401
import transformers  # noqa: F401

SECONDS = 300


def run(folder: str, arguments: list[str], seconds: int = SECONDS) -> int:
    """Pytest in ``folder``, as if it had been started there."""
    signal.alarm(seconds)  # a mutant may never end
    os.chdir(folder)
    sys.path[0] = folder
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(**json.loads(line)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()
