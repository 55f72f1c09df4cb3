"""The `tlora` command before it computes: help, typos, interruptions and pipes."""

import errno
import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.helpers.commands import invoke
from tlora.cli import options, pipeline
from tlora.recipes import RECIPES
from tlora.serving import engines
from tlora.utils.defaults import DEFAULT_RECIPE

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas"}
WATCHED = f"""
import atexit, sys
atexit.register(lambda: print("loaded", *{HEAVY} & sys.modules.keys(), file=sys.stderr))
from tlora.__main__ import main
main()
"""


def tlora(line: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which says last what it has loaded."""
    command = [sys.executable, "-c", WATCHED, *line.split()]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("--help", 0, "calibrate"),
        ("--version", 0, "transformers"),
        ("runn", 2, "Did you mean 'run'?"),
        ("run --help", 0, "--sketch-size"),
        ("export --help", 0, "--engine"),
        ("run --rank many", 2, "--rank"),
    ],
)
def test_what_needs_no_model_loads_no_torch(line: str, code: int, says: str) -> None:
    ran = tlora(line)
    assert (ran.returncode, says in ran.stdout + ran.stderr) == (code, True), ran.stderr
    assert ran.stderr.splitlines()[-1] == "loaded"


def test_tables_that_are_written_down_again_are_those_of_the_library() -> None:
    assert set(get_args(options.EngineName)) == set(engines.SERVERS)
    assert set(get_args(options.RecipeName)) == set(RECIPES)
    assert inspect.signature(pipeline.run).parameters["recipe"].default == DEFAULT_RECIPE


@pytest.mark.parametrize("seconds", [0.2, 2])
def test_an_interruption_at_any_time_is_one_line(seconds: float) -> None:
    """Imports included: this command is still loading torch."""
    code = "import sys; print('up', flush=True); from tlora.__main__ import main; main()"
    command = [sys.executable, "-c", code, "inspect", "nowhere"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    if process.returncode != 2:  # it was quicker than we were
        assert (process.returncode, told) == (130, "interrupted\n")


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_a_reader_that_has_gone_is_no_error(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = tlora(line, stdout=writer)
    os.close(writer)
    assert ran.stderr == "loaded\n"


def test_a_reader_that_goes_during_a_command_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("tlora.inspect", gone)
    result = invoke("inspect adapter")
    assert (result.exit_code, result.stderr) == (1, "")
