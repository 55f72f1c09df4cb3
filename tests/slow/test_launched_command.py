"""`tlora run` under torchrun: the run of one process, said and written once; a death ends all, and resuming goes on."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

import tlora
from tests.helpers.commands import saved, workplace
from tests.helpers.launched import ended, started
from tests.helpers.results import same
from tlora.training.checkpoints import is_complete

__all__ = ["saved", "workplace"]
pytestmark = pytest.mark.slow

HASH = re.compile(r"-[0-9a-f]{16}(?=\.safetensors$)")
LINE = "llama pairs.jsonl --recipe captured --samples 6 --rank 2 --lr 1e-2 --device cpu"


def begun(count: int, line: str) -> subprocess.Popen[str]:
    """What one would type after ``tlora``, in so many processes."""
    return started(count, "-m", "tlora", *line.split(), folder=Path.cwd())


def done(count: int, line: str) -> tuple[str, str]:
    """What it says on stdout and stderr."""
    return ended(begun(count, line))


def test_two_processes_run_as_one_does(workplace: Path) -> None:
    alone, _ = done(1, f"run {LINE} --steps 4 --batch-size 4 --output one")
    both, told = done(2, f"run {LINE} --steps 4 --batch-size 2 --output two")
    assert told.count("calibrating on 6 samples") == told.count("training, with the metrics") == 1
    assert both.count("saved") == alone.count("saved") == 1
    files = [
        sorted(HASH.sub("", str(f.relative_to(folder))) for f in Path(folder).rglob("*")) for folder in ("one", "two")
    ]
    assert files[0] == files[1]
    assert not Path("two/tlora/unfinished").exists()
    one, two = (tlora.TrainingRun.load(folder) for folder in ("one", "two"))
    assert one.ranks == two.ranks
    assert two.after["loss"] == pytest.approx(one.after["loss"], rel=1e-3)
    assert two.after["loss"] < two.before["loss"]
    scores = [tlora.load_result(Path(folder, "tlora", "sensitivity")).per_sample for folder in ("one", "two")]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-9)


def test_a_death_ends_all_and_resuming_goes_on(workplace: Path) -> None:
    options = "--batch-size 2 --epochs 40 --eval-limit 0"
    process = begun(2, f"run {LINE} {options} --output killed")
    checkpoints = Path("killed", "tlora", "unfinished", "checkpoints")
    while not any(map(is_complete, checkpoints.glob("checkpoint-*"))):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    (second,) = [worker for worker in workers if worker.environ().get("RANK") == "1"]
    second.kill()
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers), told[-2000:]
    assert not Path("killed/adapter_config.json").exists()
    done(2, f"run {LINE} {options} --output killed --resume")
    done(2, f"run {LINE} {options} --output whole")
    killed, whole = (tlora.TrainingRun.load(folder) for folder in ("killed", "whole"))
    assert killed.history["step"].max() == whole.history["step"].max()
    assert same(killed.adapter, whole.adapter)
