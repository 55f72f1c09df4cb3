"""SIGKILL at random moments: what was reported as saved is there, nothing half-written is read, and runs go on.

Each deed reports, in a file of its own, what it has saved so far, and is killed once it has used a random share of the
processor time that the whole deed takes. Two deeds are killed side by side.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.commands import done, saved
from tests.helpers.kills import FORKS, Deed, killed, killed_at, side_by_side, whole
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import run as example_run
from tests.helpers.results import same
from tlora.training.run import TrainingRun
from tlora.training.train import train

__all__ = ["saved"]
pytestmark = [pytest.mark.slow, pytest.mark.posix]

SAVES = 12  # of a deed that saves again and again
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "save_steps": 1, "save_total_limit": 3, "progress": False,
    "evaluation_limit": 0,
}  # fmt: skip


FORKS.set_forkserver_preload([__name__])


def report(folder: Path, number: int) -> None:
    """Say that something is saved, on disk before anything else happens."""
    with open(folder / "reported.txt", "a") as file:
        file.write(f"{number}\n")
        file.flush()
        os.fsync(file.fileno())


def reported(folder: Path) -> list[int]:
    file = folder / "reported.txt"
    return [int(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def moments(name: str, count: int, longest: float) -> Iterator[tuple[int, float]]:
    """A random moment in each of ``count`` equal parts of a deed."""
    rng = Random(name)
    for number in range(count):
        yield number, rng.uniform(number, number + 1) / count * longest


# Deeds that save one thing again and again, each time another.


@cache
def calibration(number: int) -> tlora.Calibration:
    return tlora.calibrate(tiny_model("llama"), [tiny_batch("llama", seed=number)], progress=False)


def calibrate(folder: Path) -> None:
    for number in range(1, SAVES + 1):
        batch = tiny_batch("llama", seed=number)
        tlora.calibrate(tiny_model("llama"), [batch], progress=False).save(folder / "saved")
        report(folder, number)


def save(folder: Path) -> None:
    run = TrainingRun.load(folder.parent / "example")
    for number in range(1, 3 * SAVES + 1):
        changed(run, number).save(folder / "saved")
        report(folder, number)


def export(folder: Path) -> None:
    for number in range(1, SAVES + 1):
        tlora.export(trained(number), folder / "saved")
        report(folder, number)


def changed(run: TrainingRun, number: int) -> TrainingRun:
    """A run whose tensors, config and record all say which one it is."""
    adapter = {name: tensor + number for name, tensor in run.adapter.items()}
    config = run.adapter_config | {"lora_dropout": number / 1000}
    return type(run)(**{**vars(run), "adapter": adapter, "adapter_config": config, "seconds": float(number)})


def trained(number: int) -> Any:
    model = adapted_model()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, number)
    return model


@cache
def exported(number: int) -> dict[str, torch.Tensor]:
    return {name: values * number for name, values in _unit().items()}


@cache
def _unit() -> dict[str, torch.Tensor]:
    layers = tlora.adapters.lora_layers.adapter_layers(trained(1))
    return {name: torch.linalg.svdvals(layer.get_delta_weight("default")) for name, layer in layers.items()}


def is_calibration(folder: Path, number: int) -> bool:
    found, made = tlora.Calibration.load(folder), calibration(number)
    return all(found.covariances[name].dense().equal(c.dense()) for name, c in made.covariances.items())


def is_run(folder: Path, number: int) -> bool:
    return (
        same(TrainingRun.load(folder), changed(example_run(), number))
        and tlora.inspect(folder).ranks == example_run().ranks
    )


def is_exported(folder: Path, number: int) -> bool:
    found = tlora.inspect(folder).singular_values
    return all(torch.allclose(found[n][:1], sigma[:1], rtol=1e-4) for n, sigma in exported(number).items())


def cut_off(saved: Path) -> bool:
    """An adapter that was being replaced, and has no config: nobody takes its old and new files for one."""
    return (saved / "adapter_model.safetensors").exists() and not (saved / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("deed", "is_number", "again", "count"),
    [
        (calibrate, is_calibration, lambda saved: calibration(0).save(saved), 15),
        (save, is_run, lambda saved: changed(example_run(), 0).save(saved), 30),
        (export, is_exported, lambda saved: tlora.export(trained(0), saved), 15),
    ],
    ids=["calibrate", "save", "export"],
)
def test_what_was_reported_as_saved_is_there(
    deed: Deed, is_number: Any, again: Deed, count: int, tmp_path: Path
) -> None:
    example_run().save(tmp_path / "example")
    longest = whole(deed, tmp_path / "whole")
    tasks = [partial(killed, deed, tmp_path / f"{n}", after) for n, after in moments(deed.__name__, count, longest)]
    side_by_side(tasks)
    seen = set()
    for number in range(count):
        folder = tmp_path / f"{number}"
        last = (reported(folder) or [0])[-1]
        seen.add(last)
        if cut_off(folder / "saved"):
            with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json there \(a copy or a save broke off"):
                tlora.inspect(folder / "saved")
        elif last or any((folder / name).exists() for name in ("saved", "saved.safetensors")):
            one = next((n for n in (last, last + 1) if n and is_number(folder / "saved", n)), None)
            assert one is not None, f"{folder}: neither {last}, which was reported, nor the next"
        # What the kill has left goes with the next write.
        again(folder / "saved")
        assert not list(folder.rglob(".tlora-*"))
    assert len(seen) > 3  # the moments were spread


# Training goes on.


def going_on(folder: Path) -> dict[str, Any]:
    """From the last whole checkpoint; or anew, where a kill has left at most a part of one."""
    place = folder / "checkpoints"
    resume = any(place.glob("checkpoint-*/arguments.json"))
    if not resume:
        shutil.rmtree(place, ignore_errors=True)
    return {"output_dir": place, "resume": resume}


def training(folder: Path) -> None:
    run = train(adapted_model(), token_rows(), **TRAINING | going_on(folder))
    run.save(folder / "saved")
    report(folder, 1)


def test_training_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Killed three times, at any moments, each time anew or from the last checkpoint."""
    longest = whole(training, tmp_path / "whole")
    expected = TrainingRun.load(tmp_path / "whole" / "saved")

    def thrice(number: int, rng: Random) -> None:
        for _ in range(3):
            killed(training, tmp_path / f"{number}", rng.uniform(0, longest))

    side_by_side([partial(thrice, n, Random(f"training {n}")) for n in range(7)])
    resumed = 0
    for number in range(7):
        folder = tmp_path / f"{number}"
        if reported(folder):
            assert same(TrainingRun.load(folder / "saved").adapter, expected.adapter)
        training(folder)
        run = TrainingRun.load(folder / "saved")
        assert same(run.adapter, expected.adapter)
        assert same(run.history, expected.history)
        assert same(run.module_history, expected.module_history)
        resumed += bool(run.meta.recipe["resume"])
    assert resumed


# Real weights.


def real_training(folder: Path) -> None:
    base, tokenizer = tlora.load_model("minilm", num_labels=2)
    task = tlora.load_task("rotten_tomatoes", tokenizer, train=24, validation=8, test=8)
    looked = tlora.calibrate(base, task.calibration(4), progress=False)
    subspaces = tlora.task_subspaces(base, looked, max_rank=8, progress=False)
    adapted = tlora.attach(base, subspaces, tlora.allocate(looked.sensitivity, rank=2))
    train(adapted, task, **TRAINING | {"batch_size": 8} | going_on(folder)).save(folder / "saved")


@pytest.mark.packaged
def test_training_of_a_real_model_goes_on(tmp_path: Path) -> None:
    longest = whole(real_training, tmp_path / "whole")
    expected = TrainingRun.load(tmp_path / "whole" / "saved")
    for number, after in moments("real", 4, longest):
        killed(real_training, tmp_path / f"{number}", after)
        if (tmp_path / f"{number}" / "saved").exists():
            assert same(TrainingRun.load(tmp_path / f"{number}" / "saved").adapter, expected.adapter)
        whole(real_training, tmp_path / f"{number}")
        run = TrainingRun.load(tmp_path / f"{number}" / "saved")
        assert same(run.adapter, expected.adapter)
        assert same(run.history, expected.history)


# The whole run of the command line, begun over an adapter that is finished.

RUN = "run ../llama ../pairs.jsonl --rank 2 --samples 12 --lr 0.02 --epochs 2 --batch-size 4 --device cpu --output out"
"""Calibrates, allocates, trains with checkpoints, evaluates, saves and draws."""


STAGES = {
    "begun": "out/tlora/unfinished/run.yaml",
    "calibrated": "out/tlora/unfinished/calibration/*",
    "allocated": "out/tlora/unfinished/allocation.safetensors",
    "trained": "out/tlora/unfinished/checkpoints/*",
}
"""What is there once a stage has begun to write."""


def running(folder: Path) -> None:
    """Begin it over what is there, or continue it if it is unfinished."""
    is_unfinished = (folder / "out" / "tlora" / "unfinished" / "run.yaml").exists()
    done(f"{RUN} {'--resume' if is_unfinished else '--overwrite'}")


def outputs(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "adapter_model.safetensors")


def test_a_run_killed_at_any_stage_keeps_the_earlier_adapter_and_resumes(saved: Path, tmp_path: Path) -> None:
    for name in ("llama", "pairs.jsonl"):
        (tmp_path / name).symlink_to(saved / name)
    (tmp_path / "earlier").mkdir()
    whole(earlier_run, tmp_path / "earlier")
    before, base = outputs(tmp_path / "earlier"), tiny_model("llama")
    for name in ("whole", *map(str, range(12)), *STAGES):
        shutil.copytree(tmp_path / "earlier" / "out", tmp_path / name / "out")
    longest = whole(running, tmp_path / "whole")
    after = outputs(tmp_path / "whole")
    assert not same(before, after)
    times = list(moments("run", 12, longest))
    by_time = [partial(killed, running, tmp_path / f"{number}", moment) for number, moment in times]
    side_by_side([*by_time, *(partial(killed_at, running, tmp_path / name, STAGES[name]) for name in STAGES)])
    for name in (*map(str, range(12)), *STAGES):
        out = tmp_path / name / "out"
        assert name not in STAGES or (out / "tlora" / "unfinished").exists()
        if not cut_off(out):
            PeftModel.from_pretrained(copy.deepcopy(base), str(out))
            assert same(outputs(out.parent), before) or same(outputs(out.parent), after)
        killed(running, out.parent, longest / 3)  # and once more on its way
        whole(running, out.parent)
        assert same(outputs(out.parent), after)
        assert not (out / "tlora" / "unfinished").exists()
        assert TrainingRun.load(out).after == TrainingRun.load(tmp_path / "whole" / "out").after


def earlier_run(folder: Path) -> None:
    done(f"{RUN} --recipe lora --seed 3")
