"""The `tlora` command before it computes: help, refusals, interruptions and pipes."""

import errno
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.helpers.commands import invoke
from tlora.cli.errors import error_text
from tlora.cli.main import app
from tlora.cli.threads import SPINS

ROOT = Path(__file__).parents[3]
OPENMP = Path(find_spec("torch").submodule_search_locations[0], "lib", "libgomp.so.1")  # type: ignore[union-attr, index]
OPENMP_AFTER_A_COMMAND = f"""
import contextlib, ctypes, sys
from tlora.__main__ import main
with contextlib.suppress(SystemExit):
    main()
assert "torch" not in sys.modules
ctypes.CDLL({str(OPENMP)!r})
"""
HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib", "viz"}
WATCHED = f"""
import atexit, sys
atexit.register(lambda: print("loaded", *{HEAVY} & sys.modules.keys(), file=sys.stderr))
from tlora.__main__ import main
main()
"""
RUN = "run smollm2-135m notebooks/data/smart_home"


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("run --help", 0, "--learning-rate"),
        ("run --help-all", 0, "--sketch-size"),
        ("--version", 0, "transformers"),
        ("run nowhere.gguf notebooks/data/smart_home --output runs/new", 2, "nowhere.gguf"),
        (f"{RUN} --output docs", 2, "docs holds"),
        (f"{RUN} --output runs/new --lr 0", 2, "--learning-rate"),
    ],
)
def test_help_and_refusals_load_no_torch(line: str, code: int, text: str) -> None:
    """In a process of its own, whose last line on stderr names the heavy packages that it has loaded."""
    environment = os.environ | {"TERMINAL_WIDTH": "200"}
    command = [sys.executable, "-c", WATCHED, *line.split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (result.returncode, text in result.stdout + result.stderr) == (code, True), result.stderr
    assert result.stderr.splitlines()[-1] == "loaded"
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not OPENMP.is_file(), reason="this torch comes with another OpenMP")
@pytest.mark.parametrize(
    ("chosen", "spins"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_threads_wait_shortly_or_as_the_user_chose(chosen: dict[str, str], spins: str) -> None:
    """As torch's own OpenMP reports what it read."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    environment |= chosen | {"OMP_DISPLAY_ENV": "VERBOSE"}
    command = [sys.executable, "-c", OPENMP_AFTER_A_COMMAND, "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in result.stderr


def test_importing_changes_no_environment() -> None:
    code = "import os; before = dict(os.environ); import tlora, viz; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.posix
@pytest.mark.parametrize("seconds", [0.2, 2])
def test_an_interruption_is_one_line_during_imports_too(seconds: float, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    code = "from tlora.__main__ import main; print('up', flush=True); main()"
    command = [sys.executable, "-c", code, "inspect", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate()[1]
    # It may have ended before: then the signal is late, or meets the interpreter on its way out.
    if process.returncode != 2 and not (process.returncode == -signal.SIGINT and stderr.startswith("error: ")):
        assert (process.returncode, stderr) == (130, "interrupted\n")


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


def test_the_examples_of_the_commands_have_options_that_exist() -> None:
    lines = [line for command in app.registered_commands for line in (command.epilog or "").split("`")[1::2]]
    lines = [line.removeprefix("tlora ") for line in lines if line.startswith("tlora ")]
    names = {*typer.main.get_command(app).commands}
    assert {line.split()[0] for line in lines} == names
    for line in lines:
        assert invoke(line.replace(" ", " --help ", 1)).exit_code == 0, line
