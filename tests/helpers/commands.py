"""A folder with tiny models and data to run commands in, and the commands run in this process."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.helpers.fine_tuned import fine_tune
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.cli import main, pipeline

LABELS = [{"text": f"w{4 + i % 7} w{11 + i % 11} w{22 + i}", "label": "abc"[i % 3]} for i in range(40)]
DATA = "llama pairs.jsonl"
RUN = f"run {DATA} --recipe tlora-paper --samples 6 --rank 2"
QUICK = "--steps 1 --eval-limit 0"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny models with a tokenizer, a fine-tune of the first, a task of answers and one of classes."""
    folder = tmp_path_factory.mktemp("saved")
    for family in ("llama", "bert", "t5"):
        tiny_model(family).save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
    fine_tune(others=True).save_pretrained(folder / "tuned")
    tiny_tokenizer().save_pretrained(folder / "tuned")
    for name, rows in (("pairs", PAIRS), ("labels", LABELS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def workplace(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with only the saved models and tasks in it."""
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes longer than everything else for a tiny model."""
    monkeypatch.setattr(pipeline, "draw_pictures", lambda *_: "")


@pytest.fixture(scope="session")
def saved_stages(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration, an allocation and an adapter of the tiny model, made by the commands."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        for file in saved.iterdir():
            (folder / file.name).symlink_to(file)
        patch.chdir(folder)
        patch.setattr(pipeline, "draw_pictures", lambda *_: "")
        done(f"calibrate {DATA} --samples 6 --output calib")
        done("allocate calib --rank 2 --output alloc")
        done(f"train {DATA} alloc calib {QUICK} --output adapter")
    return folder


@pytest.fixture
def stages(saved_stages: Path, workplace: Path) -> None:
    """The current folder, with a calibration, an allocation and an adapter."""
    for name in ("calib.safetensors", "alloc.safetensors", "adapter"):
        (workplace / name).symlink_to(saved_stages / name)


def invoke(line: str) -> Result:
    """Run the words after ``tlora``."""
    return CliRunner().invoke(main.app, shlex.split(line))


def done(line: str) -> Result:
    """Run the words after ``tlora``, successfully."""
    result = invoke(line)
    assert result.exit_code == 0, (line, result.stderr, result.exception)
    return result


def next_command(text: str, name: str = "next") -> str:
    """The command that another one names as the next, without ``tlora``."""
    whole = re.sub(r" \\\n *", " ", text)
    (line,) = [line for line in whole.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).strip().removeprefix("tlora ")
