"""The `tlora` command before it computes: help, refusals, interruptions and pipes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import invoke
from tlora.cli.errors import error_text

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib", "viz"}
WATCHED = f"""
import atexit, sys
atexit.register(lambda: print("loaded", *{HEAVY} & sys.modules.keys(), file=sys.stderr))
from tlora.__main__ import main
main()
"""
DATA = "--task notebooks/data/smart_home --output runs/new"


def tlora(line: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, whose last line on stderr names the heavy packages it has loaded."""
    command = [sys.executable, "-c", WATCHED, *line.split()]
    environment = os.environ | {"TERMINAL_WIDTH": "200"}
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("--help", 0, "calibrate"),
        ("--version", 0, "transformers"),
        ("run --help", 0, "--sketch-size"),
        ("export --help", 0, "--engine"),
        ("runn", 2, "Did you mean 'run'?"),
        ("run --ranks 8", 2, "--ranks"),
        ("run --rank many", 2, "--rank"),
        (f"run --model smollm2-135m {DATA} --lr 0", 2, "--learning-rate"),
        (f"run --model smollm2-135m {DATA} --kind wcw", 2, "--kind"),
        (f"run --model smollm2-135m {DATA} --kind g", 2, "has no effect"),
        (f"run --model smollm2-135m {DATA} --config nowhere.yaml", 2, "nowhere.yaml"),
        (f"run --model nowhere.gguf {DATA}", 2, "nowhere.gguf"),
        ("run --model smollm2-135m --task nowhere.jsonl --output runs/new", 2, "nowhere.jsonl does not exist"),
        ("run --model smollm2-135m --task notebooks/data/smart_home --output docs", 2, "docs exists"),
        ("allocate nowhere --output alloc", 2, "no result at nowhere.safetensors"),
        ("inspect nowhere", 2, "no adapter in nowhere"),
        ("report docs", 2, "no adapter in docs"),
        ("compress nowhere/ small --rank 1", 2, "no adapter in nowhere/"),
    ],
)
def test_help_and_refusals_load_no_torch(line: str, code: int, text: str) -> None:
    result = tlora(line)
    assert (result.returncode, text in result.stdout + result.stderr) == (code, True), result.stderr
    assert result.stderr.splitlines()[-1] == "loaded"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("seconds", [0.2, 2])
def test_an_interruption_is_one_line_during_imports_too(seconds: float, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    code = "import sys; print('up', flush=True); from tlora.__main__ import main; main()"
    command = [sys.executable, "-c", code, "inspect", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate()[1]
    if process.returncode != 2:  # it had ended before
        assert (process.returncode, stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_a_closed_pipe_is_no_error(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = tlora(line, stdout=writer)
    os.close(writer)
    assert result.stderr == "loaded\n"


@pytest.mark.usefixtures("stages")
def test_a_pipe_that_closes_during_a_command_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("tlora.inspect", gone)
    result = invoke("inspect adapter")
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("no module 'x'"), "no module 'x'"),
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device", "out"), "out: No space left on device"),
        (FileNotFoundError("no adapter in x"), "no adapter in x"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_read_as_one_sentence(error: BaseException, text: str) -> None:
    assert error_text(error) == text
