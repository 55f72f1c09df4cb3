"""Runs tests of several copies of the project, each in a process of its own that finds the libraries imported.

Run as a script. Each line on standard input is a JSON object with a ``folder``, ``arguments`` for pytest, and the
``seconds`` of processor time that they may take, if not as many as usual; each line on standard output is pytest's
exit code (that of a signal, negative, where a process did not end by itself). What the tests print goes to
``output.txt`` in their folder. Importing torch, transformers, peft and datasets takes seconds, and nothing of the
project is imported before the fork.
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
from hypothesis import Phase, settings

SECONDS = 300

# That a test fails is what is asked, each time alike, and not the smallest example that it fails with.
settings.register_profile("forked", database=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("forked")


def run(folder: str, arguments: list[str], seconds: int = SECONDS) -> int:
    """Pytest in ``folder``, as if it had been started there."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # a mutant may never end; a machine that is busy is no reason
    signal.alarm(4 * seconds)  # nor may it wait for ever
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
