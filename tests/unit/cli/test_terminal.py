"""What a command prints on a terminal and elsewhere: color, lines of progress, and lines to type."""

import re
import shlex
import sys

import pytest
import typer

from tests.helpers.commands import DATA, done, invoke, next_command
from tlora.cli import terminal
from tlora.cli.main import app
from tlora.cli.terminal import styled

DEMO = f"run {DATA} --rank 2 --samples 6 --steps 2 --batch-size 4 --learning-rate 2e-3 --train-samples 20"


@pytest.mark.usefixtures("workplace")
def test_a_run_ends_with_a_summary_that_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "EVERY", 0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    sizes = "--seed 3 --validation-samples 4 --test-samples 4"
    ran = done(f"{DEMO} {sizes} --gradient-checkpointing --output answers/of/a-long-name")
    lines = ran.stdout.splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", ran.stdout + ran.stderr)
    assert {"exact", "adapter", "trained", "saved", "again", "next"} <= {line.split()[0] for line in lines if line}
    assert "  training, loss=" in ran.stderr
    again = next_command(ran.stdout, "again")  # what the shell reads is what was typed
    run = typer.main.get_command(app).commands["run"]
    assert run.make_context("run", shlex.split(again)[1:]).params["test_samples"] == 4


@pytest.mark.parametrize(
    ("is_terminal", "environment", "is_colored"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_color_is_for_terminals(
    is_terminal: bool, environment: dict[str, str], is_colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert ("\x1b" in styled("saved", dim=True)) == is_colored


@pytest.mark.usefixtures("workplace")
def test_a_quiet_command_prints_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "EVERY", 0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert not invoke(f"calibrate {DATA} --samples 6 --quiet --output calib").stderr


@pytest.mark.rest
@pytest.mark.posix
@pytest.mark.usefixtures("workplace")
def test_a_terminal_shows_the_steps_of_a_run_and_its_summary() -> None:
    """Bars vanish when they have ended, and libraries say nothing."""
    from tests.helpers.terminals import run_on_terminal, screen

    written = run_on_terminal([sys.executable, "-m", "tlora", *DEMO.split(), "--recipe", "captured", "--output", "out"])
    assert "\x1b[2msaved\x1b[0m" in written
    assert "training: 100%" in written
    lines = screen(written)
    start = max(n for n, line in enumerate(lines) if line.startswith("  done in")) + 1
    steps = [line for line in lines[:start] if not line.startswith("  ")]
    assert steps == [
        "reading pairs.jsonl for llama",
        "loading llama",
        "preparing the adapter, recipe captured",
        "training, with the metrics before and after (--eval-limit 0 skips them)",
        "spectrum of the inputs",
        "drawing",
    ]
    summary = "\n".join(lines[start:]).rstrip().splitlines()
    assert len(summary) <= 15
    assert max(map(len, summary)) <= 80
